"""The reason in what pip wrote to standard error, on one line.

python -m pip install ... 2> errors || python scripts/pip_failure.py < errors
"""

import sys

_REMARKS = ("warning:", "note:", "hint:", "[notice]", "[end of output]")
_HEADINGS = ("error: subprocess-exited-with-error", "error: metadata-generation-failed", "error: failed-wheel-build")


def reason(output: str) -> str:
    """The line that says most: pip's first own error that is no heading, else a build's last error, else the last line."""
    lines = [line.strip(" │╰─>×") for line in output.splitlines()]
    lines = [line for line in lines if line and not line.lower().startswith((*_REMARKS, *_HEADINGS))]
    if not lines:
        return "pip gave no reason"
    own = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    build = [line for line in lines if "error" in line.lower()]
    return (own[:1] or build[-1:] or lines[-1:])[0][:300]


if __name__ == "__main__":
    print(reason(sys.stdin.read()))
