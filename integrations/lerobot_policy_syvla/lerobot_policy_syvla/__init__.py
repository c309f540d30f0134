"""SyVLA as a policy of LeRobot.

LeRobot's command-line tools import this package by its distribution's name; the import registers the policy type "syvla",
its processor steps and the environment "syvla_tabletop".
"""

try:
    import lerobot  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lerobot_policy_syvla needs LeRobot 0.6 (Python 3.12 or newer): pip install 'lerobot>=0.6,<0.7'. Without LeRobot, "
        "use SyVLA through transformers: AutoModel.from_pretrained, see SyVLA's README"
    ) from error

from .configuration_syvla import LeRobotSyVLAConfig
from .processor_syvla import SyVLAActionsStep, SyVLAInputsStep, make_syvla_pre_post_processors
from .tabletop_environment import TabletopEnvConfig

__all__ = [
    "LeRobotSyVLAConfig",
    "SyVLAActionsStep",
    "SyVLAInputsStep",
    "TabletopEnvConfig",
    "make_syvla_pre_post_processors",
]
