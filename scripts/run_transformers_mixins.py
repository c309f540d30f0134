"""Runs transformers' ModelTesterMixin on the tiny models; see run_transformers_mixins.sh, which fetches its source.

Prints one line per failure, the first line of its error, and the counts; the exit status is 0 whatever fails, since the mixin
asks for conventions that a policy has no use for. Their list belongs in front of a reader, not of a gate.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import unittest
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from contract_subjects import POLICY, TEXT, VALUE, Subject


class _AbsentTests(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for `tests.*` modules that the source distribution lacks: any name in them is an empty class."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.startswith("tests."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (), {}) if not name.startswith("__") else None  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def _tester(subject: Subject) -> type:
    """What the mixin calls a model tester: a configuration and a batch."""

    class Tester:
        is_training = True
        batch_size = 2
        seq_length = 23 if subject is POLICY else 15
        num_hidden_layers, hidden_size, num_attention_heads = 2, 64, 4

        def __init__(self, parent: Any) -> None:
            self.parent = parent

        def get_config(self) -> Any:
            return subject.model().config

        def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
            targets = ("labels", "returns")
            return self.get_config(), {k: v for k, v in subject.batch().items() if k not in targets}

    return Tester


def _case(subject: Subject, mixin: type) -> type:
    model_class = type(subject.model())

    def set_up(self: Any) -> None:
        self.model_tester = _tester(subject)(self)

    members = {
        "setUp": set_up,
        "all_model_classes": (model_class,),
        "all_generative_model_classes": (),
        "test_resize_embeddings": subject.has_text,
        "_is_composite": subject.has_text,
        "has_attentions": subject.has_text,
    }
    return type(f"{model_class.__name__}Test", (mixin, unittest.TestCase), members)


class _Collected:
    """Remembers the outcome of every test."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not (report.when == "setup" and report.outcome != "passed"):
            return
        self.counts[report.outcome] += 1
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else str(report.longrepr)).strip().split("\n")[0]
            self.failures.append((report.nodeid.split("::", 1)[1], reason[:150]))


def make_cases(source: Path) -> dict[str, type]:
    """Test classes by name, from the folder of a source distribution."""
    sys.path.insert(0, str(source))
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.meta_path.append(_AbsentTests())
    package = types.ModuleType("tests")
    package.__path__ = [str(source / "tests")]
    sys.modules["tests"] = package
    from tests.test_modeling_common import ModelTesterMixin

    cases = [_case(subject, ModelTesterMixin) for subject in (TEXT, POLICY, VALUE)]
    return {case.__name__: case for case in cases}


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: run_transformers_mixins.py FOLDER OF THE SOURCE DISTRIBUTION", file=sys.stderr)
        return 2
    source = Path(sys.argv[1]).resolve()
    test_file = source / "test_syvla_with_mixins.py"
    here = Path(__file__).resolve().parent
    test_file.write_text(
        f"import sys\nsys.path.insert(0, {str(here)!r})\nfrom pathlib import Path\n"
        f"from run_transformers_mixins import make_cases\nglobals().update(make_cases(Path({str(source)!r})))\n"
    )
    collected = _Collected()
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--tb=short",
        "-c",
        "/dev/null",
        "--import-mode=importlib",
    ]
    pytest.main(
        [*options, f"--rootdir={source}", "--show-capture=no", "--no-summary", str(test_file)], plugins=[collected]
    )
    for name, reason in collected.failures:
        print(f"FAILS {name}: {reason}")
    print(dict(collected.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
