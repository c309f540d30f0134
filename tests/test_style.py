"""Limits that a reader feels: the length of files and functions, and one spelling for each word."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling_syvla", "processing", "training", "serving", "evaluation", "model_cards", "syvla", "benchmarks",
           "integrations", "scripts", "tests", "docs", "recipes")  # fmt: skip
MAX_FILE, MAX_FUNCTION = 500, 80
"""Lines; those of a function without its docstring."""

# The first part of each word is written apart here, so that this file does not hold what it looks for.
BRITISH = re.compile(
    "|".join(
        first + rest
        for first, rest in (
            ("col", "our"), ("neigh", "bour"), ("behavi", "our"), ("fav", "our"), ("cen", "tre(s|d)?\\b"),
            ("lab", "ell(ed|ing)"),
            ("met", "res?(\\b|_)"), ("catal", "ogue"), ("lic", "ence"), ("gre", "y\\b"), ("data", " sets?\\b"),
            ("learn", "t\\b"), ("summar", "is"), ("normal", "is"), ("optim", "is(e|a|i)"), ("initial", "is"), ("serial", "is"),
            ("quant", "is(e|a|i)"), ("token", "is"), ("recogn", "is"), ("organ", "is(e|a|i)"), ("visual", "is"),
            ("general", "is"), ("special", "is"),
        )
    ),
    re.IGNORECASE,
)  # fmt: skip

# Spellings that others use and that are read for that reason.
READ_FROM_OTHERS = {
    "processing/normalization.py": "units of a dataset",
    "processing/transforms.py": "names of cameras",
    "tests/contracts/test_processor_chats.py": "a keyword that is misspelled on purpose",
}


def files(*endings: str) -> Iterator[Path]:
    """Files of the project: those that git tracks, or all in a copy without git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or [path for top in FOLDERS for path in (ROOT / top).rglob("*")]
    paths += [*ROOT.glob("*.md")]
    yield from (path for path in dict.fromkeys(paths) if path.suffix in endings and path.is_file())


def test_no_file_is_longer_than_a_reader_bears():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files(".py")}
    assert len(lengths) > 300
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}


def test_no_function_is_longer_than_a_screen():
    long = {}
    for path in files(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    length -= node.body[0].end_lineno - node.body[0].lineno + 1
                if length > MAX_FUNCTION:
                    long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = length
    assert long == {}


def test_words_have_one_spelling():
    found = []
    for path in files(".py", ".md", ".yaml", ".toml", ".html", ".sh", ".js", ".css"):
        name = path.relative_to(ROOT).as_posix()
        if name not in READ_FROM_OTHERS:
            lines = path.read_text().splitlines()
            found += [f"{name}:{number}: {m[0]}" for number, line in enumerate(lines, 1) if (m := BRITISH.search(line))]
    assert found == []


@pytest.mark.parametrize("name", sorted(READ_FROM_OTHERS))
def test_exceptions_are_still_needed(name):
    assert BRITISH.search((ROOT / name).read_text())
