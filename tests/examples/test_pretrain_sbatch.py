"""The Slurm script, with stand-ins for Slurm's programs: what each node starts is what accelerate and the trainer take."""

import os
import subprocess
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

from syvla.training.run.arguments import ModelArguments, PretrainingDataArguments, SyVLAPretrainingArguments
from syvla.training.run.recipe import parse_recipe

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = {
    # In two writes, far apart: a script that stops reading after the first node would end at the second.
    "scontrol": "echo node7; sleep 0.2; echo node8",
    "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
    "accelerate": 'printf "%s\\n" "$@" >> "$SEEN"; echo >> "$SEEN"',
}


def test_each_node_starts_its_part_and_goes_on_by_itself(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SEEN": str(tmp_path / "seen"),
        "OUTPUT": "a folder",
    }
    script = ROOT / "examples" / "pretrain.sbatch"
    subprocess.run(["bash", str(script)], cwd=ROOT, env=environment, check=True, timeout=60)
    started = [text.splitlines() for text in (tmp_path / "seen").read_text().strip().split("\n\n")]
    assert len(started) == 2, "one launcher a node"
    for rank, words in enumerate(started):
        assert words[0] == "launch"
        launch = launch_command_parser().parse_args(words[1:])
        assert (launch.num_machines, launch.num_processes, launch.machine_rank) == (2, 16, rank)
        assert launch.main_process_ip == "node7"
        assert (ROOT / launch.config_file).is_file()
        assert launch.training_script == "training/pretrain.py"
        types = (ModelArguments, PretrainingDataArguments, SyVLAPretrainingArguments)
        cpu = ["--use_cpu", "true", "--bf16", "false"]
        model, _, args = parse_recipe(types, [*launch.training_script_args, *cpu])
        assert (model.model_path, args.output_dir) == ("outputs/assembled", "a folder")
        assert args.resume_from_checkpoint == "auto"
