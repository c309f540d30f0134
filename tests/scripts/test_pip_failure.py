"""Why pip failed, on one line: what its real output of several kinds of failure comes down to."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pip_failure.py"

# Shortened outputs of pip 23 and 26.
MISSING = """WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError'
ERROR: Could not find a version that satisfies the requirement nothing==9 (from versions: none)
ERROR: No matching distribution found for nothing==9

[notice] A new release of pip is available: 23.2.1 -> 26.0
"""
BUILD = """  error: subprocess-exited-with-error

  × Getting requirements to build wheel did not run successfully.
  │ exit code: 1
  ╰─> [1 lines of output]
      RuntimeError: a C compiler is needed
      [end of output]

  note: This error originates from a subprocess, and is likely not a problem with pip.
error: subprocess-exited-with-error
"""
CONFLICT = """ERROR: Cannot install a==1 and b==2 because these package versions have conflicting dependencies.
ERROR: ResolutionImpossible: for help visit the documentation
"""


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (MISSING, "Could not find a version that satisfies the requirement nothing==9 (from versions: none)"),
        (BUILD, "RuntimeError: a C compiler is needed"),
        (CONFLICT, "Cannot install a==1 and b==2 because these package versions have conflicting dependencies."),
        ("Killed\n", "Killed"),
        ("", "pip gave no reason"),
    ],
)
def test_the_reason_is_one_line(output, reason):
    result = subprocess.run([sys.executable, SCRIPT], input=output, capture_output=True, text=True, check=True)
    assert result.stdout == reason + "\n"


def test_pip_itself_is_understood(tmp_path):
    """A package that cannot be there, from an index that is empty: no network is needed."""
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-index", "--target", str(tmp_path), "no-such-package"]
    failed = subprocess.run(pip, capture_output=True, text=True)
    assert failed.returncode != 0
    result = subprocess.run([sys.executable, SCRIPT], input=failed.stderr, capture_output=True, text=True, check=True)
    assert "no-such-package" in result.stdout
    assert result.stdout.count("\n") == 1
