"""Two trainers do not work on one run; a trainer that was killed does not keep the next one out."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from syvla.training.rl.run_lock import only_trainer

ROOT = Path(__file__).parents[3]
HOLD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from syvla.training.rl.run_lock import only_trainer
    with only_trainer(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
""")


def test_a_second_trainer_is_told_who_the_first_one_is_and_a_killed_one_keeps_nobody_out(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "held\n"
    told = rf"another trainer works on .* \(process {process.pid} on .* since .*\); stop it first, or choose another"
    with pytest.raises(ValueError, match=told), only_trainer(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_trainer(tmp_path):
        pass
    with only_trainer(tmp_path):
        assert (tmp_path / ".training.json").is_file()
