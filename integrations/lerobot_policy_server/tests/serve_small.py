"""`python -m lerobot_policy_server` for the checkpoints of `small_policies`, from their folder and with their tiny sizes."""

import sys

import small_vlas
from lerobot_policy_server.__main__ import main
from small_policies import shrink, write_tokenizer

if __name__ == "__main__":
    kind = next((word.rpartition("_")[0] for word in sys.argv if word.endswith(("_tabletop", "_aloha"))), "")
    if kind in ("pi0", "pi05"):
        shrink(kind)
    if kind in small_vlas.BASES:
        small_vlas.BASES[kind](write_tokenizer)
    sys.exit(main())
