"""LeRobot finds the policy, its processors and the environment by the distribution's name."""

import subprocess
import sys
from importlib.metadata import distribution

import pytest
from lerobot_usage import policy_config


def test_lerobot_imports_the_plugin_by_its_name_and_resolves_everything():
    script = """
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.configs import PreTrainedConfig
from lerobot.envs import EnvConfig
from lerobot.policies.factory import get_policy_class
from lerobot.processor import ProcessorStepRegistry
assert "syvla" in PreTrainedConfig.get_known_choices()
assert "syvla_tabletop" in EnvConfig.get_known_choices()
assert {"syvla_inputs_processor", "syvla_actions_processor"} <= set(ProcessorStepRegistry.list())
print(get_policy_class("syvla").__name__)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "LeRobotSyVLAPolicy"
    assert distribution("lerobot_policy_syvla").metadata["Name"] == "lerobot_policy_syvla"


def test_the_chunk_size_is_the_checkpoints(syvla_checkpoint):
    config = policy_config(syvla_checkpoint=str(syvla_checkpoint))
    assert config.chunk_size == config.n_action_steps == 8
    assert config.action_delta_indices == list(range(8))
    with pytest.raises(ValueError, match="chunk_size: the checkpoint predicts 8"):
        policy_config(syvla_checkpoint=str(syvla_checkpoint), chunk_size=50)
    with pytest.raises(ValueError, match="n_action_steps: expected 1 to chunk_size=8, got 9"):
        policy_config(syvla_checkpoint=str(syvla_checkpoint), n_action_steps=9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "dtype: expected one of float32, bfloat16"),
        ({"statistics": "mine"}, "statistics: expected one of"),
        ({"normalization": "max"}, "normalization: expected one of"),
        ({"n_obs_steps": 2}, "n_obs_steps: SyVLA acts on the present observation alone"),
        ({"random_tiny": True, "syvla_checkpoint": "x"}, "give one of the two"),
    ],
)
def test_wrong_options_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        policy_config(**fields)


def test_a_policy_without_a_checkpoint_says_how_to_name_one():
    with pytest.raises(ValueError, match=r"--policy\.syvla_checkpoint="):
        policy_config().action_delta_indices  # noqa: B018
