"""The documentation site: it builds without a warning, documents every public name, and quotes messages that exist."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    quoted = re.findall(r"^\| `([^`]+)`(?: or `([^`]+)`)? \|", page, re.MULTILINE)
    assert len(quoted) >= 15
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for package in (*PACKAGES, "syvla"):
        sources += [path.read_text(encoding="utf-8") for path in (ROOT / package).rglob("*.py")]
    # Messages are often split over lines: quotes, line breaks and f-prefixes between the parts are left out.
    text = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    for pair in quoted:
        assert any(part in text for part in pair if part), pair


@pytest.mark.slow
def test_the_site_builds_strictly_and_can_be_searched(tmp_path):
    """A dead link, a page out of the navigation or a missing object ends the build with a status of its own."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'syvla[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    models = (tmp_path / "site" / "api" / "modeling.html").read_text(encoding="utf-8")
    assert "Skip the VLM and act on these states" in models, "a docstring's text"
    index = (tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "Feature Query Tokens" in index
    pages = list((tmp_path / "site").rglob("*.html"))
    outside = [p.name for p in pages if re.search(r'<(?:script|link)[^>]+(?:src|href)="https?://', p.read_text())]
    assert not outside, "the site works without internet"
    if browser := shutil.which("chromium") or shutil.which("google-chrome"):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        page = (tmp_path / "site" / "index.html").as_uri()
        seen = subprocess.run([browser, *flags, page], capture_output=True, text=True, timeout=120).stdout
        assert "How the model works" in seen
