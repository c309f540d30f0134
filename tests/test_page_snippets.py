"""Every command and snippet of README, CONTRIBUTING, docs and notebooks is run by a named test, or says what it needs."""

import ast
import importlib
import importlib.util
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from page_snippets import OTHER, PAGES, PROSE, ROOT, SHELL, Snippet, commands, snippets

MINUTES = "minutes"
"""Of a whole machine: what is slow even at tiny scale."""

NEEDS = {
    "a cluster",
    "a GPU",
    "a robot",
    "the Hub",
    "a package index",
    "a model server",
    "a simulator's files",
    MINUTES,
}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
ALL = [snippet for page in PAGES for snippet in snippets(page)]
INLINE = re.compile(r"(?<!`)`((?:syvla-?\w* |syvla-[\w-]+|python -m |make |scripts/|[A-Z_]+=\S+ )[^`\n]*)`(?!`)")


def test_all_of_them_are_found():
    assert len(ALL) >= 75
    assert {snippet.language for snippet in ALL} == SHELL | OTHER | PROSE
    fences = sum(page.read_text(encoding="utf-8").count("```") for page in PAGES)
    assert fences == 2 * len(ALL), "a fence that the pattern does not see"


@pytest.mark.parametrize("snippet", [s for s in ALL if s.language not in PROSE], ids=lambda snippet: snippet.place)
def test_each_is_run_by_a_test_or_says_what_it_needs(snippet):
    assert snippet.marks, f"{snippet.place}: write <!-- run by tests/FILE.py::TEST --> or <!-- needs ... --> above it"
    assert len(snippet.marks) == max(len(snippet.commands), 1), f"{snippet.place}: one mark, or one for each command"
    for number, mark in enumerate(snippet.marks):
        kind, _, what = mark.partition(" ")
        if kind == "needs":
            assert what in NEEDS, f"{snippet.place}: expected one of {sorted(NEEDS)}, got {what!r}"
            continue
        what = what.removeprefix("by ")
        words = snippet.commands[number] if snippet.commands else ()
        if not what.startswith("tests/"):
            assert workflow_runs(what, words), f"{snippet.place}: {what} does not run {' '.join(words)}"
        else:
            assert runs(what, snippet, words), f"{snippet.place}: {what} does not run {' '.join(words) or 'it'}"


def workflow_runs(file: str, words: tuple[str, ...]) -> bool:
    """Whether a file of the continuous integration, or the Makefile, names the target; pytest is what `make test` runs."""
    target = "test" if "pytest" in words else words[1]
    assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words
    return bool(re.search(rf"(make|\$\(MAKE\)).*\b{target}\b", (ROOT / file).read_text(encoding="utf-8")))


@cache
def source(file: str) -> str:
    """A test file's text, with that of its conftest and of what it takes from tests/support."""
    path = ROOT / file
    text = path.read_text(encoding="utf-8")
    imported = [word for node in ast.walk(ast.parse(text)) for word in imported_names(node)]
    others = [ROOT / "tests" / "support" / f"{name}.py" for name in imported]
    others += [folder / "conftest.py" for folder in path.parents if folder.is_relative_to(ROOT / "tests")]
    return "\n".join([text, *(other.read_text(encoding="utf-8") for other in others if other.is_file())])


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def runs(what: str, snippet: Snippet, words: tuple[str, ...]) -> bool:
    """Whether the named test exists, and reads the page or has program and options of the command."""
    file, _, name = what.partition("::")
    text = source(file)
    assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), f"{snippet.place}: {what}: no such test"
    if re.search(rf"[\"/]{re.escape(snippet.page.name)}\"", text):
        return True
    named = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if re.match(r"--[a-z]", word)}
    missing = {option for option in named if option not in text.replace("-", "_")}
    program = next((word for word in words if not re.match(r"[A-Z_]+=|python|accelerate$|-m$", word)), "")
    return bool(words) and not missing and any(part in text for part in programs(program))


def programs(program: str) -> list[str]:
    """What a test may call a program by: its name, its module, its module's last name."""
    module = SCRIPTS.get(program, program).partition(":")[0]
    return [program, module, module.rpartition(".")[2], Path(program).stem]


INLINE_COMMANDS = [
    (page, text)
    for page in PAGES
    for text in INLINE.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))
]


@pytest.mark.parametrize(("page", "text"), INLINE_COMMANDS, ids=lambda value: str(value)[-60:])
def test_what_commands_in_the_prose_name_exists(page, text):
    """`syvla-eval --env adroit` in a sentence: the program, the module, the target, and each option's name."""
    for words in commands(text):
        check_names(page, [word for word in words if not re.match(r"[A-Z_]+=", word)])


@pytest.mark.parametrize("snippet", [s for s in ALL if s.commands], ids=lambda snippet: snippet.place)
def test_what_the_commands_name_exists(snippet):
    for words in snippet.commands:
        check_names(snippet.page, [word for word in words if not re.match(r"[A-Za-z_]+=", word)])


def check_names(page: Path, words: list[str]) -> None:
    if not words:
        return
    first, *rest = words
    place = f"{page.name}: {' '.join(words)}"
    if first == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS, place
    elif first.startswith("scripts/"):
        assert (ROOT / first).is_file(), place
    elif first.startswith("syvla"):
        assert first in SCRIPTS, place
        check_options(place, SCRIPTS[first].partition(":")[0], rest)
    elif first.endswith("python") and rest[:1] == ["-m"] and rest[1].partition(".")[0] in ("syvla", "benchmarks"):
        assert importlib.util.find_spec(rest[1]), place
        check_options(place, rest[1], rest[2:])
    elif first.endswith("python") and rest and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file(), place
    elif first == "accelerate":
        path = next(word for word in rest if word.endswith(".py"))
        check_options(place, f"syvla.{path.removesuffix('.py').replace('/', '.')}", rest[rest.index(path) + 1 :])


def check_options(place: str, module: str, words: list[str]) -> None:
    known = options_of(module)
    for word in words:
        if re.match(r"--[a-z]", word):
            assert word.partition("=")[0] in known, f"{place}: {module} has no option {word}"


@cache
def options_of(module: str) -> set[str]:
    """Options that a module's sources name, those of the fields of dataclasses for the commands that train."""
    from syvla.training.run.recipe import recipe_parser

    path = importlib.util.find_spec(module).origin
    text = Path(path).read_text(encoding="utf-8")
    found = set(re.findall(r"[\"'](--[a-z][\w-]*)[\"']", text)) | {"--help", "--help-all"}
    types = {
        "syvla.training.finetune": ("imitation", "DataArguments", "SyVLATrainingArguments"),
        "syvla.training.pretrain": ("imitation", "PretrainingDataArguments", "SyVLAPretrainingArguments"),
    }
    if module in types:
        arguments = importlib.import_module("syvla.training.run.arguments")
        classes = [getattr(arguments, name) for name in ("ModelArguments", *types[module][1:])]
    elif module in ("syvla.training.ppo", "syvla.training.rl_run"):
        ppo = importlib.import_module("syvla.training.ppo")
        classes = [ppo.ModelArguments, ppo.RLDataArguments, ppo.SyVLAPPOConfig]
    elif module == "syvla.training.value_warmup":
        warmup = importlib.import_module(module)
        classes = [warmup.ValueArguments, warmup.ValueTrainingArguments]
    else:
        classes = []
    if classes:
        found |= set(recipe_parser(classes, [])[0]._option_string_actions)
    for imported in re.findall(r"^\s*from (syvla[\w.]+|\.\w*) import", text, re.MULTILINE):
        found |= options_near(module, imported)
    return found


def options_near(module: str, imported: str) -> set[str]:
    """Options that a module next to it names: parsers are put together from several files."""
    name = importlib.util.resolve_name(imported, module.rpartition(".")[0])
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return set()
    return set(re.findall(r"[\"'](--[a-z][\w-]*)[\"']", Path(spec.origin).read_text(encoding="utf-8")))


def test_cells_of_notebooks_are_run_as_they_are_stored():
    """By tests/test_notebooks.py::test_it_runs, which takes every notebook there is."""
    notebooks = sorted(ROOT.rglob("*.ipynb"))
    notebooks = [path for path in notebooks if not {"outputs", ".venv"} & set(path.relative_to(ROOT).parts)]
    assert {path.parent for path in notebooks} == {ROOT / "notebooks"}
    assert 'glob("*.ipynb")' in source("tests/test_notebooks.py")
    for path in notebooks:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert cell["cell_type"] != "markdown" or "```" not in "".join(cell["source"]), f"{path.name}: a snippet"


def test_a_snippet_without_a_mark_and_a_mark_without_a_test_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nsyvla-eval --env tabletop \\\n    --task lift\nls 'a\nb'\n```\n", encoding="utf-8")
    (snippet,) = snippets(page)
    assert snippet.commands == (("syvla-eval", "--env", "tabletop", "--task", "lift"), ("ls", "a\nb"))
    assert snippet.marks == ()
    page.write_text("<!-- needs a GPU | needs a cluster -->\n```bash\nls\nls\n```\n", encoding="utf-8")
    assert snippets(page)[0].marks == ("needs a GPU", "needs a cluster")
    with pytest.raises(AssertionError, match="no such test"):
        runs("tests/test_page_snippets.py::test_that_is_not_there", ALL[0], ("make", "play"))
    with pytest.raises(AssertionError, match="has no option --no-such"):
        check_names(page, ["syvla-eval", "--no-such", "1"])
    with pytest.raises(AssertionError):
        check_names(page, ["make", "nothing"])
