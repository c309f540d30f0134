"""The page about conversion says what is there: its mapping can be read, its presets and formats exist."""

import re
from pathlib import Path

import yaml

from syvla.processing.conversion.command import build_parser
from syvla.processing.conversion.dimensions import CHANGES
from syvla.processing.conversion.formats import FORMATS
from syvla.processing.conversion.mapping import ConversionMapping, presets

PAGE = (Path(__file__).parents[3] / "docs/datasets.md").read_text(encoding="utf-8")


def test_the_mapping_of_the_page_can_be_read():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    found = ConversionMapping.from_dict(yaml.safe_load(text))
    assert (found.fps, found.trim, found.task) == (30, 2, "fold the towel")
    assert found.open_questions() == []


def test_commands_formats_changes_and_presets_of_the_page_exist():
    for line in re.findall(r"^syvla-convert (.*)$", PAGE, re.MULTILINE):
        build_parser().parse_args([word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)])
    for name in (*FORMATS, *CHANGES):
        assert f"`{name}`" in PAGE, name
    for name in presets():
        stem = name.removeprefix("oxe_")
        assert stem in PAGE or name.startswith("rh20t_cfg"), name
