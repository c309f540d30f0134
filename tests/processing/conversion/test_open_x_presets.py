"""The mappings of Open X-Embodiment sets against the features that the catalog of tensorflow-datasets publishes for them.

`FEATURES` holds shapes from `docs/catalog/NAME.md` of github.com/tensorflow/datasets; of droid and bridge_dataset, which the
catalog lacks, those that their authors' builders declare.
"""

import pytest

from syvla.processing.conversion.mapping import load_preset

TEXT: tuple[int, ...] = ()
COMMAND = {"action/world_vector": (3,), "action/rotation_delta": (3,), "action/gripper_closedness_action": (1,)}
INSTRUCTION = {"observation/natural_language_instruction": TEXT}
FEATURES: dict[str, dict[str, tuple[int, ...]]] = {
    "bridge": {
        "action/open_gripper": (1,),
        "observation/image": (480, 640, 3),
        "observation/state": (7,),
        **INSTRUCTION,
    },
    "bridge_dataset": {
        "action": (7,),
        "observation/image_0": (256, 256, 3),
        "observation/state": (7,),
        "language_instruction": TEXT,
    },
    "fractal20220817_data": {
        **COMMAND,
        "observation/base_pose_tool_reached": (7,),
        "observation/gripper_closed": (1,),
        "observation/image": (256, 320, 3),
        **INSTRUCTION,
    },
    "droid": {
        "action_dict/cartesian_velocity": (6,),
        "action_dict/gripper_position": (1,),
        "observation/cartesian_position": (6,),
        "observation/gripper_position": (1,),
        "observation/exterior_image_1_left": (180, 320, 3),
        "observation/exterior_image_2_left": (180, 320, 3),
        "observation/wrist_image_left": (180, 320, 3),
        "language_instruction": TEXT,
    },
    "bc_z": {
        "action/future/xyz_residual": (30,),
        "action/future/axis_angle_residual": (30,),
        "action/future/target_close": (10,),
        "observation/present/xyz": (3,),
        "observation/present/axis_angle": (3,),
        "observation/present/sensed_close": (1,),
        "observation/image": (171, 213, 3),
        **INSTRUCTION,
    },
    "taco_play": {
        "action/rel_actions_world": (7,),
        "observation/robot_obs": (15,),
        "observation/rgb_static": (150, 200, 3),
        "observation/rgb_gripper": (84, 84, 3),
        **INSTRUCTION,
    },
    "jaco_play": {
        **COMMAND,
        "observation/end_effector_cartesian_pos": (7,),
        "observation/image": (224, 224, 3),
        "observation/image_wrist": (224, 224, 3),
        **INSTRUCTION,
    },
    "berkeley_autolab_ur5": {
        **COMMAND,
        "observation/robot_state": (15,),
        "observation/image": (480, 640, 3),
        "observation/hand_image": (480, 640, 3),
        **INSTRUCTION,
    },
}


@pytest.mark.parametrize("name", FEATURES)
def test_every_key_exists_and_is_wide_enough(name):
    mapping, features = load_preset(f"oxe_{name}"), FEATURES[name]
    assert features[mapping.task_source] == TEXT
    for spec in (*mapping.state, *mapping.action):
        assert spec.end <= features[spec.source][0], spec.source
    for camera in mapping.cameras.values():
        height, width = camera.resize or features[camera.source][:2]
        assert len(features[camera.source]) == 3
        assert height % 2 == width % 2 == 0, "video needs even sizes"
    widths = {kind: sum(len(spec.names) for spec in getattr(mapping, kind)) for kind in ("state", "action")}
    assert widths["action"] == (4 if name == "jaco_play" else 7)
    assert widths["state"] in (7, 8)
