"""Hook of the documentation's build: a page with every message that the code raises, by its first words.

It reads the sources without importing them. Prints the page where it is run: python scripts/message_index.py
"""

from __future__ import annotations

import ast
import html
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
AREAS = {
    "syvla": "Commands",
    "modeling_syvla": "Models",
    "processing": "Data",
    "training": "Training",
    "serving": "Serving",
    "evaluation": "Evaluation",
}
PAGE = "messages.md"
FILLED = "<…>"
"""What stands for the parts of a message that differ from case to case."""

INTRODUCTION = f"""# Every message

All messages that the code raises, {{count}} of them, in alphabetical order within each part. `{FILLED}` stands for what differs
from case to case. Search for the words that you see. Most name the key, what was expected and what came;
[Troubleshooting](troubleshooting.md) explains the ones that newcomers meet first.
"""


def messages(folder: Path) -> Iterator[tuple[str, str]]:
    """(message, file relative to the checkout) of every `raise Error(...)` and `parser.error(...)` below a folder."""
    for path in sorted(folder.rglob("*.py")):
        if folder.name == "syvla" and path.parent != folder:  # links to the other folders
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = _text(_first_argument(node))
            if text and any(letter.isalpha() for letter in text.replace(FILLED, "")):
                yield " ".join(text.split()), path.relative_to(folder.parent).as_posix()


def page() -> str:
    """The page in Markdown."""
    parts, count = [], 0
    for folder, title in AREAS.items():
        found = sorted(set(messages(ROOT / folder)), key=lambda entry: (entry[0].lstrip(FILLED + ":. ").lower(), entry))
        count += len(found)
        rows = [f"| {_cell(text)} | `{file}` |" for text, file in found]
        parts += [f"\n## {title}\n", "| message | raised in |", "|---|---|", *rows]
    return INTRODUCTION.format(count=count) + "\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds the page to the site; called by mkdocs."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


def _first_argument(node: ast.AST) -> ast.expr | None:
    """The message's expression, where a node raises one."""
    call = node.exc if isinstance(node, ast.Raise) else node
    if not isinstance(call, ast.Call) or not call.args:
        return None
    if isinstance(node, ast.Raise):
        return call.args[0]
    function = call.func
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return None
    return call.args[0] if (function.value.id, function.attr) == ("parser", "error") else None


def _text(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else FILLED for value in node.values)  # type: ignore[misc]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or FILLED) + (_text(node.right) or FILLED)
    return ""


def _cell(text: str) -> str:
    """A message as a table's cell: nothing of it is Markdown."""
    escaped = html.escape(text, quote=False).replace("|", "&#124;").replace("`", "&#96;")
    return "".join(f"\\{letter}" if letter in "*_[]" else letter for letter in escaped)


if __name__ == "__main__":
    sys.stdout.write(page())
