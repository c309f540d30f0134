"""Runs the vision-language commands of docs/evaluation.md as they stand there, with a tiny untrained checkpoint and small data.

    python scripts/check_lmms_eval.py [lmms-eval]     # all of them, or those of one program

`make check-lmms-eval` does so in an environment with nothing but what the page installs. What the commands name lies in a
temporary folder: the checkpoint `org/syvla-3b`, the benchmarks in `data`, and under lmms-eval's name for it the DocVQA that
lmms-eval would otherwise ask the Hub for.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from syvla.evaluation.vlm_benchmarks.synthetic_data import write_benchmarks
from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import build_tiny_processor

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evaluation.md"
PROGRAMS = ("syvla-eval-vlm", "lmms-eval")
SHORTER = {"syvla-eval-vlm": ["--limit", "2", "--max-new-tokens", "4", "--image-budget", "checkpoint", "--quiet"]}
SCORES = {"syvla-eval-vlm": r"\| score \| [\d.]+ \|", "lmms-eval": r"\|docvqa_val\s*\|.*\|anls\s*\|.*\|\s*[\d.]+\s*\|"}
"""Of the table that each prints: lmms-eval ends with status 0 whatever happens."""


def page_commands() -> list[list[str]]:
    """Those of `PROGRAMS` in the page's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    return [words for words in lines if words and words[0] in PROGRAMS]


def prepare(folder: Path) -> None:
    """Writes what the commands name."""
    checkpoint = folder / "org" / "syvla-3b"
    config = SyVLAConfig.tiny()
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(checkpoint)
    processor = build_tiny_processor(config)
    statistics = {"mean": np.zeros(14), "std": np.ones(14)}
    processor.set_embodiment("tabletop", {"state": statistics, "action": statistics})
    processor.save_pretrained(checkpoint)
    write_benchmarks(folder / "data", 28, seed=0)
    write_benchmarks(folder / "data", 4, seed=0, tasks=["docvqa"])  # of which lmms-eval asks every row
    (folder / "data" / "DocVQA" / "README.md").write_text(
        "---\nconfigs:\n- config_name: DocVQA\n  data_files:\n  - split: validation\n    path: DocVQA/validation-*\n---\n"
    )
    (folder / "lmms-lab-encoder").symlink_to("data", target_is_directory=True)


def main() -> int:
    """Runs them; 1 if one fails or prints no scores, or none is there."""
    commands = page_commands()
    for program in sys.argv[1:] or PROGRAMS:
        if program not in {words[0] for words in commands}:
            print(f"{PAGE}: expected a command of {program}, got {commands}", file=sys.stderr)
            return 1
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        caches = {"HF_DATASETS_CACHE": f"{name}/cache", "LMMS_EVAL_DATASETS_CACHE": f"{name}/cache"}
        environment = {**os.environ, **caches, "HF_HUB_OFFLINE": "1"}
        for program, *arguments in commands:
            if program not in (sys.argv[1:] or PROGRAMS):
                continue
            line = shlex.join([program, *arguments])
            own = Path(sys.executable).with_name(program)
            words = [str(own), *arguments, *SHORTER.get(program, [])]
            result = subprocess.run(words, cwd=name, env=environment, capture_output=True, text=True)
            if result.returncode or not re.search(SCORES[program], result.stdout):
                said = result.stdout[-3000:] + result.stderr[-5000:]
                print(f"{line}: status {result.returncode}, no scores\n{said}", file=sys.stderr)
                return 1
            print(f"{line}: scores printed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
