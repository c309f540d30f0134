"""Pretrain SyVLA on many robots at once, with multi-modal data mixed in (paper, appendix A, pretraining).

    syvla-pretrain --config training/recipes/pretrain.yaml --model_path outputs/assembled --output_dir outputs/pretrained

    accelerate launch --config_file training/accelerate_configs/zero2_multinode.yaml training/pretrain.py \
        --config training/recipes/pretrain.yaml --model_path outputs/assembled --output_dir outputs/pretrained

The second line takes several machines. Every key of the recipe is an option of the command line, which wins.
`model_path` is a checkpoint out of pretrained parts, see `syvla-assemble`. It differs from `finetune.py` in its
defaults alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

from syvla.training.imitation import command as imitation
from syvla.training.run.arguments import PretrainingDataArguments, SyVLAPretrainingArguments


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-pretrain`. Returns the exit status; bad input is printed as one error."""
    return imitation.main(argv, PretrainingDataArguments, SyVLAPretrainingArguments, __doc__, "syvla-pretrain")


if __name__ == "__main__":
    sys.exit(main())
