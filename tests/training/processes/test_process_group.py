"""The end of a run of several processes, in two real ones."""

import subprocess
import sys

from syvla.training.processes.process_group import leave_process_group

SCRIPT = """
import os, sys, time
import torch.distributed as dist
from pathlib import Path
from syvla.training.processes.process_group import leave_process_group

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
if dist.get_rank() == 0:
    time.sleep(1.0)
    (folder / "written").touch()
leave_process_group()
assert (folder / "written").is_file(), "nobody leaves before all is written"
assert not dist.is_initialized()
leave_process_group()
(folder / f"left_{os.environ['RANK']}").touch()
"""


def test_all_leave_together_when_the_slowest_has_written(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launch, str(script), str(tmp_path)], check=True, timeout=120)
    assert sorted(path.name for path in tmp_path.glob("left_*")) == ["left_0", "left_1"]


def test_a_run_of_one_process_has_nothing_to_leave():
    leave_process_group()
