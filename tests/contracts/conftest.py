"""The contracts of transformers, PEFT and TRL, asked of our models, and on request of others beside them.

`pytest tests/contracts --contract-table FILE` asks Qwen2.5-VL and PI0 of the installed transformers as well, prints the
table and writes it to FILE as JSON. What others do not keep is then reported in the table and fails nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from contract_subjects import BY_NAME, SUBJECTS, Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--contract-table", metavar="FILE", help="ask other models as well, and write the table to FILE")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`subject` is every model that `applies` admits; those of others only for the table."""
    if "subject" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("applies")
    admitted = marker.args[0] if marker else lambda subject: True
    others = metafunc.config.getoption("--contract-table")
    subjects = [s for s in SUBJECTS if admitted(s) and (s.ours or others)]
    metafunc.parametrize("subject", subjects, ids=str)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "applies(predicate): models that the contract is asked of")
    config.stash[_TABLE] = defaultdict(dict)


_TABLE = pytest.StashKey[dict[str, dict[str, str]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    report = yield
    subject: Subject | None = getattr(item, "callspec", None) and item.callspec.params.get("subject")
    if subject is None or (report.when != "call" and report.outcome == "passed"):
        return report
    contract = item.nodeid.split("::")[0].rsplit("/", 1)[-1].removeprefix("test_").removesuffix(".py")
    contract += ": " + item.originalname.removeprefix("test_").replace("_", " ")  # type: ignore[attr-defined]
    others = [str(v) for k, v in item.callspec.params.items() if k != "subject"]  # type: ignore[attr-defined]
    contract += f" [{', '.join(others)}]" if others else ""
    if report.outcome == "failed" and not subject.ours and item.config.getoption("--contract-table"):
        reason = str(call.excinfo.value).strip().split("\n")[0] if call.excinfo else ""
        report.outcome, report.wasxfail = "skipped", reason
        cell = f"fails: {reason[:110]}"
    else:
        cell = {"passed": "holds", "failed": "FAILS", "skipped": "skipped"}[report.outcome]
    item.config.stash[_TABLE][contract][subject.name] = cell
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not (path := config.getoption("--contract-table")):
        return
    table = config.stash[_TABLE]
    Path(path).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    width = max(map(len, table), default=0)
    terminalreporter.section("contracts")
    terminalreporter.write_line(f"{'':<{width}}  " + "  ".join(BY_NAME))
    for contract, cells in table.items():
        row = "  ".join(f"{cells.get(name, '-')[:40]:<{len(name)}}" for name in BY_NAME)
        terminalreporter.write_line(f"{contract:<{width}}  {row}")
