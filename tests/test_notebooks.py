"""The notebooks run as they are stored, and stand there with the outputs of a run."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'syvla[test]'")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("run_notebooks", ROOT / "scripts" / "run_notebooks.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell):
    """Text of a cell's outputs, and the names of other kinds."""
    parts = [output.get("text") or list(output.get("data", {})) for output in cell["outputs"]]
    return " ".join("".join(part) if isinstance(part, list) else part for part in parts)


def kinds(cell):
    return {output["output_type"] for output in cell["outputs"]}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_with_the_outputs_of_one_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "from top to bottom"
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) - 1, "all but the one that only imports"
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    texts = " ".join(shown(cell) for cell in cells)
    assert not re.search(r"/(home|root|work|tmp|Users)/", texts), "no folder of the machine that ran it"
    assert path.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    """In a copy of what it needs, so that outputs of a person's own runs stay."""
    (tmp_path / "notebooks").mkdir()
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    copy = shutil.copy(path, tmp_path / "notebooks")
    cells = code_cells(script.execute(Path(copy)))
    stored = code_cells(json.loads(path.read_text(encoding="utf-8")))
    assert [kinds(cell) for cell in cells] == [kinds(cell) for cell in stored]


def test_outputs_name_no_folder_and_progress_bars_keep_their_end():
    text = f"at {ROOT}/outputs/a\n 10%|#   |\r100%|####|\nlast"
    assert script.clean(text) == "at outputs/a\n100%|####|\nlast"
