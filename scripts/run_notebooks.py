"""Executes the notebooks and stores their outputs: `.venv/bin/python scripts/run_notebooks.py [NOTEBOOK ...]`.

Each runs in the folder `notebooks`, as a person would run it, with a kernel of the Python that runs this.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
TIMEOUT_S = 600  # of one cell
INLINE = "module://matplotlib_inline.backend_inline"  # whatever MPLBACKEND says outside


def execute(path: Path) -> Any:
    """The notebook with fresh outputs, in which this machine's folders are not named.

    Args:
        path: Of the notebook, which is not changed.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError  # noqa: F401  (named in the docstring)

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute(env={**os.environ, "MPLBACKEND": INLINE})
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.metadata.pop("execution", None)  # times of the run
        # Warnings of libraries name folders of this machine and say nothing about what the notebook shows.
        cell["outputs"] = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in cell["outputs"]:
            if "text" in output:
                output["text"] = clean(output["text"])
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def clean(text: str) -> str:
    """Text of an output without folders of this machine and without the intermediate states of progress bars."""
    text = text.replace(f"{FOLDER.parent}/", "")
    return "\n".join(re.sub(r"^.*\r(?!$)", "", line) for line in text.split("\n"))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    import nbformat

    given = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    for path in given or sorted(FOLDER.glob("*.ipynb")):
        started = time.monotonic()
        nbformat.write(execute(path.resolve()), path)
        print(f"{path.name}: {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
