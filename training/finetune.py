"""Fine-tune SyVLA on LeRobot data, with multi-modal data mixed in (paper, appendix A, task fine-tuning).

    syvla-finetune --model_path outputs/base --robot_datasets me/my_task --multimodal_share 0 --output_dir outputs/my_task

    accelerate launch training/finetune.py --config training/recipes/finetune.yaml \
        --model_path org/syvla-3b --robot_datasets path/to/dataset --output_dir outputs/my-policy

The second line takes several GPUs, and chats from the recipe. Every key of the recipe is an option of
the command line, which wins.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

from syvla.training.imitation import command as imitation


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-finetune`. Returns the exit status; bad input is printed as one error."""
    return imitation.main(argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())
