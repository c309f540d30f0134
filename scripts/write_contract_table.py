"""Writes the table of contracts, as `pytest tests/contracts --contract-table JSON` leaves it, into a Markdown page.

python scripts/write_contract_table.py benchmarks/results/contracts.json docs/contracts.md
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

MARKS = ("<!-- table of contracts: begin -->", "<!-- table of contracts: end -->")


def table(contracts: dict[str, dict[str, str]]) -> str:
    """Markdown: how many contracts of each kind a model keeps, and what is not kept.

    Args:
        contracts: "kind: contract" -> model -> "holds", "skipped", "FAILS" or "fails: reason".
    """
    models = list(dict.fromkeys(model for cells in contracts.values() for model in cells))
    counts: dict[tuple[str, str], Counter[str]] = {}
    broken = []
    for contract, cells in contracts.items():
        kind = contract.split(":", 1)[0].replace("_", " ")
        for model, cell in cells.items():
            state = cell.split(":", 1)[0].lower()
            counts.setdefault((kind, model), Counter())[state] += 1
            if state == "fails":
                reason = cell.partition(": ")[2] or "see the run"
                broken.append(f"- `{model}`, {contract.replace('_', ' ')}: {reason.replace('|', ' ')}")
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    lines = ["| | " + " | ".join(f"`{model}`" for model in models) + " |", "|---" * (len(models) + 1) + "|"]
    for kind in kinds:
        lines.append(f"| {kind} | " + " | ".join(_cell(counts.get((kind, model))) for model in models) + " |")
    total = [sum((counts[key] for key in counts if key[1] == model), Counter()) for model in models]
    lines.append("| **all** | " + " | ".join(_cell(count) for count in total) + " |")
    return "\n".join([*lines, "", "Not kept:", "", *(broken or ["- nothing"])])


def _cell(count: Counter[str] | None) -> str:
    """ "5 of 6" of those that were asked; those that do not apply to the model were skipped."""
    asked = 0 if count is None else count["holds"] + count["fails"]
    return f"{count['holds']} of {asked}" if count is not None and asked else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("contracts", type=Path, help="JSON of --contract-table")
    parser.add_argument("page", type=Path, help="Markdown page with the marks " + " and ".join(MARKS))
    options = parser.parse_args()
    text, old = table(json.loads(options.contracts.read_text())), options.page.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.DOTALL)
    if not pattern.search(old):
        print(f"{options.page}: expected the marks {' and '.join(MARKS)}, got none", file=sys.stderr)
        return 1
    options.page.write_text(pattern.sub(lambda _: f"{MARKS[0]}\n{text}\n{MARKS[1]}", old), encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
