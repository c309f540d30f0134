"""Runs transformers' ModelTesterMixin on the tiny models; see run_transformers_mixins.sh, which fetches its source.

Prints a table of what fails and why it may, and the counts. The mixin also asks for conventions that a policy has no use for;
`DO_NOT_APPLY` says of each in a sentence why. The exit status is 1 if a test fails that is not in that list, or if one of the
list passes. `--write FILE` puts the table between two marks of a Markdown page.
"""

from __future__ import annotations

import argparse
import functools
import importlib.abc
import importlib.machinery
import re
import sys
import types
import unittest
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import transformers
from contract_subjects import POLICY, TEXT, VALUE, Subject

# (class, test) -> why the contract does not apply to the class.
DO_NOT_APPLY: dict[tuple[str, str], str] = {
    ("SyVLAForConditionalGeneration", "test_bc_cache_name_forward"): (
        "It expects a deprecation warning for `past_key_values`; here `cache` and `past_key_values` both stay, since "
        "transformers 5.4 knows only the older name and PEFT passes it. That both act alike is a test of ours."
    ),
    ("SyVLAModel", "test_correct_missing_keys"): (
        "It loads the base model's checkpoint, which is a plain Qwen2.5-VL; a policy whose expert would then be random is "
        "refused by name."
    ),
    ("SyVLAModel", "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions"): (
        "It asks for attentions with SDPA, which keeps none; they are refused by name instead of returned empty. The other "
        "24 cases of the test hold."
    ),
    ("SyVLAModel", "test_model_is_small"): (
        "The tiny policy has 1.24 million parameters, VLM and expert together; the mixin allows 1 million."
    ),
    ("SyVLAModel", "test_resize_tokens_embeddings"): (
        "It overwrites the last tokens of the prompt, which are query tokens; a prompt with some of them is refused by "
        "name. Resizing is a test of ours."
    ),
    ("SyVLAModel", "test_training_gradient_checkpointing_use_reentrant_true"): (
        "Intention Decoupling takes a gradient inside the forward, which reentrant checkpointing cannot; it is refused by "
        "name."
    ),
    ("SyVLAValueModel", "test_model_get_set_embeddings"): (
        "It reads images and a state: its input embedding is a linear layer on image features, no table of tokens."
    ),
}

MARKS = ("<!-- transformers mixins: begin -->", "<!-- transformers mixins: end -->")


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


def _tester(subject: Subject, text_only: bool) -> type:
    """What the mixin calls a model tester: a configuration and a batch, of text alone where it drops the images."""

    tokens = {POLICY: 23, TEXT: 15, VALUE: 2 + 3 * 4}

    class Tester:
        is_training = True
        batch_size = 2
        seq_length = tokens[subject]
        num_hidden_layers, hidden_size, num_attention_heads = 2, 64, 4
        image_size, patch_size = 32, 8

        def __init__(self, parent: Any) -> None:
            self.parent = parent

        def get_config(self) -> Any:
            config = subject.model().config
            fresh = type(config).from_dict(config.to_diff_dict())  # without the attention that the model was given
            if subject is POLICY:  # which refuses `output_attentions` with attention that keeps none
                fresh._attn_implementation = "eager"
            return fresh

        def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
            batch = {k: v for k, v in subject.batch().items() if k not in _TARGETS}
            if text_only:
                batch = {"input_ids": batch["input_ids"][:, 6:]}
            return self.get_config(), batch

    return Tester


_TARGETS = ("labels", "returns")


def _case(subject: Subject, mixin: type) -> type:
    model_class = type(subject.model())

    def set_up(self: Any) -> None:
        drops_images = subject is POLICY and self._testMethodName.startswith("test_eager_matches")
        self.model_tester = _tester(subject, drops_images)(self)

    def prepare_for_class(self: Any, inputs: dict[str, Any], model_class: type, return_labels: bool = False) -> Any:
        targets = {k: v for k, v in subject.batch().items() if k in _TARGETS} if return_labels else {}
        return {**mixin._prepare_for_class(self, inputs, model_class), **targets}  # type: ignore[attr-defined]

    def image_inputs(self: Any) -> Any:
        config, inputs = mixin._image_features_prepare_config_and_inputs(self)  # type: ignore[attr-defined]
        # Where the mixin looks for the width of the last hidden state; transformers' tiny Qwen2.5-VL has the same width
        # after its merger, ours another one.
        config.vision_config = types.SimpleNamespace(hidden_size=config.vlm_config.vision_config.hidden_size)
        return config, {name: tensor for name, tensor in inputs.items() if not name.startswith("expert_")}

    def reload_without_weights(self: Any) -> None:
        """As the mixin, with the argument that allows it: by default a missing weight is refused."""
        lenient = functools.partial(model_class.from_pretrained, allow_missing_weights=True)
        with mock.patch.object(model_class, "from_pretrained", lenient):
            mixin.test_model_weights_reload_no_missing_tied_weights(self)  # type: ignore[attr-defined]

    members = {
        "setUp": set_up,
        "all_model_classes": (model_class,),
        "all_generative_model_classes": (),
        "test_resize_embeddings": subject.has_text,
        "_is_composite": subject.has_text,
        "has_attentions": subject.has_text,
        "_prepare_for_class": prepare_for_class,
        "_image_features_prepare_config_and_inputs": image_inputs,
        "test_model_weights_reload_no_missing_tied_weights": reload_without_weights,
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


def verdict(failures: list[tuple[str, str]]) -> tuple[str, list[str]]:
    """The table of what fails and why it may, and what is wrong with it: failures without a reason, reasons without one."""
    rows, problems, seen = [], [], set()
    for name, error in failures:
        model, test = name.split("::")
        key = (model.removesuffix("Test"), test.split("[")[0].split(" ")[0])
        if key in seen:
            continue
        seen.add(key)
        if key not in DO_NOT_APPLY:
            problems.append(f"{key[0]}: {key[1]} fails: {error}")
        rows.append(f"| `{key[0]}` | `{key[1]}` | {DO_NOT_APPLY.get(key, 'not examined: ' + error)} |")
    problems += [
        f"{model}: {test} passes; take it off the list" for model, test in DO_NOT_APPLY if (model, test) not in seen
    ]
    return "\n".join(["| Model | Test that fails | Why it does not apply |", "|---|---|---|", *rows]), problems


def _write_table(page: Path, text: str) -> None:
    """Put `text` between the two marks of a page."""
    old = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.DOTALL)
    if not pattern.search(old):
        raise SystemExit(f"{page}: expected the marks {MARKS[0]} and {MARKS[1]}, got none")
    page.write_text(pattern.sub(lambda _: f"{MARKS[0]}\n{text}\n{MARKS[1]}", old), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="folder of the source distribution")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this Markdown page")
    options = parser.parse_args()
    source = options.source.resolve()
    test_file = source / "test_syvla_with_mixins.py"
    here = Path(__file__).resolve().parent
    test_file.write_text(
        f"import sys\nsys.path.insert(0, {str(here)!r})\nfrom pathlib import Path\n"
        f"from run_transformers_mixins import make_cases\nglobals().update(make_cases(Path({str(source)!r})))\n"
    )
    collected = _Collected()
    options_of_pytest = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--no-header", "--tb=short"]
    places = ["-c", "/dev/null", "--import-mode=importlib", f"--rootdir={source}"]
    pytest.main([*options_of_pytest, *places, "--show-capture=no", "--no-summary", str(test_file)], plugins=[collected])
    table, problems = verdict(collected.failures)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(collected.counts.items()))
    text = f"transformers {transformers.__version__}: {counts}.\n\n{table}"
    print(text)
    if options.write:
        _write_table(options.write, text)
    for problem in problems:
        print(f"PROBLEM {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
