"""Writes `constraints/python-X.Y.txt`: the exact packages of the environment that runs this, one a line.

    make constraints                                   # newest releases, whole suite, then this
    .venv/bin/python scripts/write_constraints.py      # from an environment that has passed the suite

Not written: the project itself, pip, local builds' suffixes (torch 2.13.0+cpu is torch 2.13.0), and CUDA's libraries, which
torch pins itself and which only its CUDA builds have.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

_LEFT_OUT = re.compile(r"(syvla|pip|wheel|triton|nvidia-.*|cuda-.*)$")


def pins() -> list[str]:
    """`name==version` of every other installed package, sorted; names as indexes normalize them."""
    found = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if not _LEFT_OUT.match(name):
            found[name] = distribution.version.split("+")[0]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def main() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    path = Path(__file__).parents[1] / "constraints" / f"python-{version}.txt"
    head = f"# The exact set that `make demo` and `make test` install on Python {version}; written by `make constraints`.\n"
    path.write_text(head + "\n".join(pins()) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
