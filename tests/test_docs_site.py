"""The documentation site: it builds without a warning, documents every public name, and quotes messages that exist."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import browsers
from rl_robot import until

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGES = {
    "modeling_syvla": "modeling",
    "processing": "processing",
    "training": "training",
    "serving": "serving",
    "evaluation": "evaluation",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package):
    page = (DOCS / "api" / f"{PACKAGES[package]}.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    public = set(importlib.import_module(f"syvla.{package}").__all__)
    found = {name.rpartition(".")[2] for name in documented}
    assert found == public, f"docs/api/{PACKAGES[package]}.md needs one line '::: module.Name' for each public name"


def test_figures_are_those_of_the_benchmarks():
    """Pages of the site can only show what lies below docs/, so a benchmark's figure is there a second time."""
    copy, original = DOCS / "figures" / "scaling_cpu.png", ROOT / "benchmarks" / "results" / "scaling_cpu.png"
    assert copy.read_bytes() == original.read_bytes()


def test_messages_of_the_troubleshooting_page_exist():
    """What the page quotes from tables headed 'message holds' is a part of some message in the sources."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(
        r"^\| (?:<a id=\"[\w-]+\"></a>)?`([^`]+)`(?: or `([^`]+)`)?(?: \(LeRobot\))? \|", page, re.MULTILINE
    )
    assert len(quoted) >= 25
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for package in (*PACKAGES, "syvla"):
        sources += [path.read_text(encoding="utf-8") for path in (ROOT / package).rglob("*.py")]
    # Messages are often split over lines: quotes, line breaks and f-prefixes between the parts are left out.
    text = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    for part in (part for pair in quoted for part in pair if part):
        assert part in text, part


def test_errors_name_the_line_of_the_troubleshooting_page(tmp_path, capsys):
    """Each anchor of the code stands on the page, before the words by which it is found."""
    from syvla.known_errors import ANCHORS, anchor_of

    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| <a id=\"([\w-]+)\"></a>([^|]+)\|", page, re.MULTILINE))
    assert set(rows) == set(ANCHORS)
    for anchor, parts in ANCHORS.items():
        assert all(f"`{part}`" in rows[anchor] for part in parts), anchor
        assert all(anchor_of(f"{part}: and more") == anchor for part in parts)
    assert anchor_of("all is well") is None


@pytest.mark.parametrize(
    ("module", "words", "anchor"),
    [
        ("training.finetune", ["--output_dir", "x", "--use_cpu", "true"], "both-needed"),
        ("processing.cleaning.command", ["recordings", "--output", "out"], "no-dataset"),
        ("training.new_checkpoint", ["--size", "tiny", "--robot-from", ".", "--output", "base"], "no-dataset"),
    ],
)
def test_a_command_s_error_names_its_line(module, words, anchor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recordings").mkdir()
    assert importlib.import_module(f"syvla.{module}").main(words) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"explained in docs/troubleshooting.md#{anchor}"


def test_the_page_of_messages_has_them_all():
    """What each package raises by `raise Error("...")`: counted here by the words alone."""
    spec = importlib.util.spec_from_file_location("message_index", ROOT / "scripts" / "message_index.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.page()
    assert len(re.findall(r"^\| .* \| `\w+/", page, re.MULTILINE)) > 1000
    assert "both are needed; pass a checkpoint and at least one dataset | `training/imitation/command.py` |" in page
    for folder in PACKAGES:
        files = [
            path for path in (ROOT / folder).rglob("*.py") if re.search(r"raise \w+Error\(\s*f?\"", path.read_text())
        ]
        listed = set(re.findall(r"\| `([\w/]+\.py)` \|$", page, re.MULTILINE))
        assert {path.relative_to(ROOT).as_posix() for path in files} <= listed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A dead link, a page out of the navigation or a missing object ends the build with a status of its own."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'syvla[docs]'")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_can_be_searched(site):
    """As `make docs` does it."""
    models = (site / "api" / "modeling.html").read_text(encoding="utf-8")
    assert "Skip the VLM and act on these states" in models, "a docstring's text"
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "Feature Query Tokens" in index
    pages = list(site.rglob("*.html"))
    outside = [p.name for p in pages if re.search(r'<(?:script|link)[^>]+(?:src|href)="https?://', p.read_text())]
    assert not outside, "the site works without internet"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.html", "architecture.html", "protocol_frames.html", "troubleshooting.html"])
def test_pages_of_the_site_in_a_browser(site, tmp_path, page):
    """Opened from the file system, without a server; what they look like is kept in outputs/screenshots."""
    with browsers(lambda: tmp_path / "profile") as start:
        shown = start((site / page).as_uri(), "--window-size=1300,1600")
        until(lambda: "How the model works" in (shown.value("document.body.innerText") or ""), 60)
        broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"
        until(lambda: shown.value(f"{broken}.length") == 0, 30)
        wide = shown.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "nothing has to be scrolled sideways"


@pytest.mark.slow
def test_the_search_finds_a_word_without_a_server(site, tmp_path):
    with browsers(lambda: tmp_path / "profile") as start:
        shown = start((site / "robots" / "so101.html").as_uri(), "--window-size=1300,900")
        until(lambda: shown.value("!!document.querySelector('input.md-search__input')"), 60)
        shown.value("document.querySelector('input.md-search__input').focus()")
        for letter in "decoupling":
            shown.call("Input.dispatchKeyEvent", type="char", text=letter)
        until(lambda: shown.value("document.querySelectorAll('.md-search-result__item').length > 0"), 60)
        assert "decoupling" in shown.value("document.querySelector('.md-search-result__list').innerText").lower()
