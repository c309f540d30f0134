"""The snippets of the project's pages, and the comment above each that says what runs it.

A page says it in an HTML comment in the line before the fence, which no reader sees:

    <!-- run by tests/test_page_commands.py::test_fine_tuning -->
    <!-- run by .github/workflows/tests.yml -->
    <!-- needs a GPU -->
    <!-- run by tests/test_one.py::test_it | needs the Hub | needs the Hub -->

One word for the whole fence, or one for each of its commands, in order.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL, OTHER, PROSE = {"bash"}, {"python", "yaml", "json"}, {"text"}
"""Languages of fences: of commands, of snippets, and of what nobody could run."""

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ((?:run by|needs) [^>]*?) -->\n\Z")


@dataclass(frozen=True)
class Snippet:
    """A fence of a page.

    Attributes:
        marks: One for each of `commands`, or none where the page says nothing.
        commands: Words of each command; for other languages none.
    """

    page: Path
    line: int
    language: str
    text: str
    marks: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path) -> list[Snippet]:
    """All fences of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [_snippet(page, text, match) for match in _FENCE.finditer(text)]


def _snippet(page: Path, text: str, match: re.Match[str]) -> Snippet:
    before, language, body = text[: match.start()], match[2], match[3]
    found = commands(body) if language in SHELL else ()
    mark = _MARK.search(before)
    marks = tuple(word.strip() for word in mark[1].split("|")) if mark else ()
    if len(marks) == 1:
        marks *= max(len(found), 1)
    return Snippet(page, before.count("\n") + 1, language, body, marks, found)


def commands(text: str) -> tuple[tuple[str, ...], ...]:
    """Words of each command of a shell snippet; comments left out, commands of several lines put together."""
    found, open_text = [], ""
    for line in text.splitlines():
        open_text += line + "\n"
        try:
            words = shlex.split(open_text.replace("\\\n", " "), comments=True)
        except ValueError:  # an open quotation
            continue
        if open_text.endswith("\\\n"):
            continue
        open_text = ""
        if not all(re.match(r"\w+=", word) for word in words):  # a comment, or a variable that is set
            found.append(tuple(words))
    assert not open_text, open_text
    return tuple(found)
