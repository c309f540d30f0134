"""docs/comparison.md: a source for every mark of another project, and no reference that is missing or of no use."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
DEFINED = dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", PAGE, re.MULTILINE))
BODY = re.sub(r"^\[[\w-]+\]: .*$", "", PAGE, flags=re.MULTILINE)
OWNERS = {"lr": ("huggingface.co/docs/lerobot/", "github.com/huggingface/lerobot/"),
          "op": ("github.com/Physical-Intelligence/openpi/",), "gr": ("github.com/NVIDIA/Isaac-GR00T/",)}  # fmt: skip
WITHOUT_SOURCE = {"not found", "one family", "none yet"}


def rows() -> list[list[str]]:
    lines = [line for line in BODY.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def references(text: str) -> set[str]:
    pairs = re.findall(r"\[[^\[\]]+\]\[([\w-]+)\]", text)
    return {*pairs, *(name for name in re.findall(r"(?<!\])\[([\w-]+)\](?![\[(])", text) if name in DEFINED)}


def test_every_mark_of_another_project_has_a_source():
    assert len(rows()) >= 18
    for name, *cells in rows():
        assert len(cells) == 4, name
        for cell in cells[:3]:
            assert cell in WITHOUT_SOURCE or references(cell), (name, cell)


def test_references_are_defined_used_and_of_the_project_in_whose_column_they_stand():
    used = references(BODY)
    assert set(re.findall(r"\]\[([\w-]+)\]", BODY)) <= set(DEFINED)
    assert used == set(DEFINED)
    for name, target in DEFINED.items():
        owner = name.partition("-")[0]
        if owner in OWNERS:
            assert target.startswith(tuple(f"https://{start}" for start in OWNERS[owner])), name
        else:
            assert (ROOT / "docs" / target).is_file(), name


def test_marks_of_the_readme_are_those_of_this_page():
    text = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("| | LeRobot | openpi | Isaac GR00T | SyVLA |\n|---|", 1)[1]
    )
    table = {name: cells for name, *cells in rows()}
    short = [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()[1:]]
    assert len(short) >= 6
    for name, *cells in short:
        for mark, cell in zip(cells, table[name], strict=True):
            assert re.sub(r"\[([^\[\]]+)\](\[[\w-]+\])?", r"\1", cell).startswith(mark), (name, mark, cell)


def test_what_syvla_lacks_is_said():
    own = {name: cells[3] for name, *cells in rows()}
    for name in ("pretrained weights of a large model", "measured on GPUs", "drives motors and cameras"):
        assert own[name].startswith("no"), name
    assert own["community, support"] == "none yet"
