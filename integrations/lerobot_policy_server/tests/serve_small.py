"""`python -m lerobot_policy_server` for the checkpoints of `small_policies`, from their folder; pi0 with its tiny sizes."""

import sys

from lerobot_policy_server.__main__ import main
from small_policies import shrink_pi0

if __name__ == "__main__":
    if any("pi0" in argument for argument in sys.argv):
        shrink_pi0()
    sys.exit(main())
