"""Opening the data of a run for a robot that the checkpoint knows: disagreements end it before the first step."""

import copy
import json

import numpy as np
import pytest

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import RobotDatasetWriter, build_tiny_processor
from syvla.training.imitation.datasets import load_robot_data
from syvla.training.run.arguments import DataArguments

NAMES = ["shoulder", "elbow", "gripper"]
CENTER, SPREAD = np.array([10.0, 40.0, 0.5]), np.array([20.0, 25.0, 0.3])
DEGREES = {kind: ["deg", "deg", ""] for kind in ("state", "action")}


@pytest.fixture
def record(tmp_path):
    """Writes two episodes of 40 frames of a robot in degrees: `record(scale, names, fps) -> path`."""

    def write(scale=1.0, names=NAMES, fps=30):
        rng = np.random.default_rng(0)
        features = {key: {"dtype": "float32", "shape": [3], "names": names} for key in ("observation.state", "action")}
        features["observation.images.head"] = {
            "dtype": "image",
            "shape": [8, 8, 3],
            "names": ["height", "width", "channels"],
        }
        path = tmp_path / f"{scale}-{names[0]}-{fps}"
        with RobotDatasetWriter(path, fps=fps, features=features, use_videos=False) as writer:
            for _ in range(2):
                for _ in range(40):
                    values = (CENTER + SPREAD * rng.normal(size=3)) * np.array([scale, scale, 1.0])
                    frame = {key: values.astype(np.float32) for key in ("observation.state", "action")}
                    frame["observation.images.head"] = np.zeros((8, 8, 3), np.uint8)
                    writer.add_frame(frame, "lift")
                writer.save_episode()
        return path

    return write


@pytest.fixture
def known(record):
    """Model and processor that know the robot from data in degrees, at 30 Hz."""
    config = SyVLAConfig.tiny(embodiments={})
    model, processor = SyVLAModel(config), build_tiny_processor(config)
    load(model, processor, record(), units=DEGREES)
    return model, processor


def load(model, processor, path, recompute=False, **spec):
    entry = {"path": str(path), "embodiment": "arm", "cameras": {"center": "observation.images.head"}, **spec}
    arguments = DataArguments(robot_datasets=[json.dumps(entry)], recompute_statistics=recompute)
    return load_robot_data(arguments, model, processor)


def test_the_same_robot_starts(known, record):
    model, processor = known
    before = copy.deepcopy(processor.embodiments["arm"])
    assert before["state_units"] == ["deg", "deg", ""]
    assert before["statistics"]["state"]["floor"][:2] == [0.5, 0.5], "by the units"
    load(model, processor, record(scale=0.7))
    assert processor.embodiments["arm"] == before


@pytest.mark.parametrize(
    ("recorded", "spec", "message"),
    [
        ({"scale": np.pi / 180}, {}, "statistics: state: the data's spreads are 0.017"),
        (
            {"scale": np.pi / 180},
            {"units": {kind: ["rad", "rad", ""] for kind in ("state", "action")}},
            "units: state:",
        ),
        ({"names": NAMES[::-1]}, {}, "names: state: the same dimensions in another order"),
        ({"fps": 15}, {}, "rate: the checkpoint acts 30 times a second, the data 15 times"),
        ({}, {"normalization": "quantile"}, "normalization: action: the checkpoint was trained with 'mean_std'"),
    ],
)
def test_a_disagreement_ends_the_run_before_it_starts(known, record, recorded, spec, message):
    model, processor = known
    path = record(**recorded)
    before = copy.deepcopy(processor.embodiments)
    with pytest.raises(
        ValueError, match="the data is not as the checkpoint knows 'arm'; nothing was trained"
    ) as refused:
        load(model, processor, path, **spec)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert processor.embodiments == before


def test_each_choice_starts(known, record):
    model, processor = known
    slow, radians = record(fps=15), record(scale=np.pi / 180)
    assert load(model, processor, slow, control_hz=30)[0].control_hz == 30  # resampled
    load(model, processor, slow, accept=["rate"])
    assert processor.embodiments["arm"]["control_hz"] == 30
    load(model, processor, record(), normalization="quantile", accept=["normalization"])
    assert processor.embodiments["arm"]["normalization"]["state"] == "mean_std"
    load(model, processor, radians, embodiment="arm_in_radians")
    assert processor.embodiments["arm_in_radians"]["id"] == 1
    load(model, processor, radians, recompute=True)
    assert max(processor.embodiments["arm"]["statistics"]["state"]["std"][:2]) < 1
    with pytest.raises(ValueError, match=r"accept: .* expected a list of names, rate, statistics, normalization, got"):
        load(model, processor, radians, accept=["speed"])


def test_clipping_is_chosen_for_a_new_robot_and_kept(known, record):
    """Far outside the statistics a clipped robot's state is the bound, an unclipped one's is not."""
    model, processor = known
    path = record()
    load(model, processor, path, embodiment="clipped", clip=5, units=DEGREES)
    load(model, processor, path, embodiment="clipped")  # the checkpoint's own
    far = {"images": {"center": np.zeros((32, 32, 3), np.uint8)}, "text": "lift", "state": np.full(3, 1e6, np.float32)}
    states = processor.collate([{**far, "embodiment": name} for name in ("arm", "clipped")])["state"]
    assert states[0, :3].min() > 1000
    assert states[1, :3].tolist() == [5, 5, 5]
    with pytest.raises(
        ValueError, match="clip: the checkpoint's embodiment 'arm' was trained with none, the data says 5"
    ):
        load(model, processor, path, clip=5)
    with pytest.raises(ValueError, match="clip: expected a positive number of spreads, such as 10, got '5'"):
        load(model, processor, path, embodiment="other", clip="5", units=DEGREES)
    entries = [{"path": str(path), "embodiment": "new", "cameras": {"center": "observation.images.head"}} for _ in "ab"]
    entries[1]["clip"] = 5
    with pytest.raises(ValueError, match="clip differs from that of other datasets of 'new'"):
        load_robot_data(DataArguments(robot_datasets=[json.dumps(entry) for entry in entries]), model, processor)


def test_two_datasets_of_a_new_robot_agree_with_each_other(record):
    """Their statistics are pooled; names and rates are compared."""
    config = SyVLAConfig.tiny(embodiments={})
    model, processor = SyVLAModel(config), build_tiny_processor(config)
    shared = {"embodiment": "arm", "cameras": {"center": "observation.images.head"}}
    entries = [json.dumps({"path": str(record(fps=fps)), **shared}) for fps in (30, 15)]
    with pytest.raises(ValueError, match="rate: the checkpoint acts 30 times a second, the data 15 times"):
        load_robot_data(DataArguments(robot_datasets=entries), model, processor)
