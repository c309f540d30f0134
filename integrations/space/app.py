"""A Hugging Face Space: a person instructs a policy on a simulated table. `python app.py` runs it anywhere.

The policy is the folder `checkpoint` beside this file, or else the one of the checkout that this file is in.
"""

from pathlib import Path

from syvla.evaluation.play.command import find_checkpoint
from syvla.evaluation.play.page import build_page, launch_options
from syvla.evaluation.play.session import load_tabletop_policy

beside = Path(__file__).with_name("checkpoint")
demo = build_page(load_tabletop_policy(find_checkpoint(str(beside) if beside.is_dir() else None)))

if __name__ == "__main__":
    demo.launch(**launch_options())
