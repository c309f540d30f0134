"""Small recordings in the published layouts of other formats, with values that tell their episode, step and dimension."""

import io
import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def numbers(episode: int, length: int, width: int) -> np.ndarray:
    """float64 (length, width): episode + step / 100 + dimension / 1000."""
    return episode + np.arange(length)[:, None] / 100 + np.arange(width)[None] / 1000


def picture(episode: int, step: int, camera: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A frame whose top is brighter than its bottom, whose left is redder than its right."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 1] = (20 + 10 * step + 40 * camera + 5 * episode) % 256
    image[: size[0] // 2, :, 2] = 200
    image[:, : size[1] // 2, 0] = 220
    return image


def jpeg(image: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95, subsampling=0, **options)
    return buffer.getvalue()


CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")


def write_aloha(
    path: Path, episode: int = 0, length: int = 5, compressed: bool = False, size: tuple[int, int] = (48, 64), **changes
) -> Path:
    """One episode as ACT's and Cobot Magic's `record_episodes.py` lay it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, compressed
        observations = file.create_group("observations")
        for key in ("qpos", "qvel", "effort"):
            observations.create_dataset(key, data=numbers(episode, length, 14) + 10 * len(key))
        file.create_dataset("action", data=numbers(episode, length, 14) + 100)
        file.create_dataset("base_action", data=numbers(episode, length, 2))
        images = observations.create_group("images")
        lengths = []
        for number, camera in enumerate(CAMERAS):
            count = changes.get(f"{camera}_frames", length)
            frames = [picture(episode, step, number, size) for step in range(count)]
            if not compressed:
                images.create_dataset(camera, data=np.stack(frames), chunks=(1, *size, 3))
                continue
            encoded = [jpeg(frame) for frame in frames]
            longest = max(map(len, encoded)) + 300
            padded = [np.frombuffer(data.ljust(longest, b"\0"), np.uint8) for data in encoded]
            images.create_dataset(camera, data=np.stack(padded))
            lengths.append([len(data) for data in encoded])
        if compressed:
            file.create_dataset("compress_len", data=np.array(lengths, np.float32))
    return path


def write_robomind(path: Path, episode: int = 0, length: int = 4) -> Path:
    """One `trajectory.hdf5` of RoboMIND: `puppet` is the state, `master` the action, JPEGs of their own length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, camera in enumerate(("camera_front", "camera_left_wrist")):
            dataset = file.create_dataset(
                f"observations/rgb_images/{camera}", (length,), h5py.vlen_dtype(np.dtype("uint8"))
            )
            for step in range(length):
                dataset[step] = np.frombuffer(jpeg(picture(episode, step, number)[..., ::-1]), np.uint8)
        file.create_dataset("observations/depth_images/camera_front", (length,), h5py.vlen_dtype(np.dtype("uint8")))
        for arm in ("left", "right"):
            file.create_dataset(f"puppet/joint_position_{arm}", data=numbers(episode, length, 7))
            file.create_dataset(f"master/joint_position_{arm}", data=numbers(episode, length, 7) + 50)
        file.create_dataset("language_raw", data=[b"stack the bowls"])
    return path


def write_libero(path: Path, lengths: tuple[int, ...] = (4, 3), size: tuple[int, int] = (32, 32)) -> Path:
    """A file of LIBERO's demonstrations: pictures with the bottom row first, the instruction in `problem_info`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "open the top drawer", "problem_name": "x"})
        data.attrs["env_args"] = json.dumps({"env_name": "Libero_Kitchen", "env_kwargs": {"control_freq": 20}})
        for episode, length in enumerate(lengths):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = length
            demo.create_dataset("actions", data=numbers(episode, length, 7))
            demo.create_dataset("states", data=numbers(episode, length, 79))
            demo.create_dataset("rewards", data=np.zeros(length, np.uint8))
            for key, width in (("ee_states", 6), ("gripper_states", 2), ("joint_states", 7)):
                demo.create_dataset(f"obs/{key}", data=numbers(episode, length, width) + len(key))
            for number, camera in enumerate(("agentview_rgb", "eye_in_hand_rgb")):
                frames = [picture(episode, step, number, size)[::-1] for step in range(length)]
                demo.create_dataset(f"obs/{camera}", data=np.stack(frames))
    return path


RH20T_CAMERAS = ("cam_038522062288", "cam_045322071843")


def write_rh20t(
    root: Path, number: int = 0, length: int = 8, configuration: int = 3, start: int = 1_700_000_000_000, **changes
) -> Path:
    """A scene of RH20T: two cameras with clocks of their own, and the dictionaries that its authors save with numpy."""
    from syvla.processing.robot_data.video import VideoWriter

    folder = root / f"task_0001_user_0002_scene_{number:04d}_cfg_{configuration:04d}"
    tcp, joint, gripper, force = {}, {}, {}, {}
    for camera, name in enumerate(RH20T_CAMERAS):
        (folder / name).mkdir(parents=True)
        times = [start + 100 * step + 7 * camera for step in range(length)]
        np.save(folder / name / "timestamps.npy", {"color": times, "depth": times})
        with_frames = changes.get(f"{name}_frames", length)
        writer = VideoWriter(folder / name / "color.mp4", 10, 48, 64, "h264")
        for step in range(with_frames):
            writer.write(picture(number, step, camera))
        writer.close()
        serial = name.removeprefix("cam_")
        values = [number + step / 100 for step in range(length)]
        tcp[serial] = [
            {"timestamp": t, "tcp": np.array([v, 2 * v, 3 * v, 1.0, 0, 0, 0]), "robot_ft": np.zeros(6)}
            for t, v in zip(times, values, strict=True)
        ]
        joint[serial] = {t: np.arange(6) + v for t, v in zip(times, values, strict=True)}
        gripper[serial] = {
            t: {"gripper_command": [10 * v, 1, 2], "gripper_info": np.array([5 * v, 0.0])}
            for t, v in zip(times, values, strict=True)
        }
        force[serial] = [{"timestamp": t, "raw": np.ones(6), "zeroed": np.full(6, 0.5)} for t in times]
    (folder / "transformed").mkdir()
    for name, content in (("tcp_base", tcp), ("joint", joint), ("gripper", gripper), ("force_torque_base", force)):
        np.save(folder / "transformed" / f"{name}.npy", content)
    (root / "task_description.json").write_text(
        json.dumps({"task_0001": {"task_description_english": "Press the button"}})
    )
    return folder


def write_rlds(root: Path, lengths: tuple[int, ...], size: tuple[int, int] = (48, 64)) -> Path:
    """A folder of tensorflow-datasets in the layout of the Open X set of Bridge V2, by an encoder of its own."""
    from syvla.processing.conversion.tfrecord import masked_checksum

    root.mkdir(parents=True, exist_ok=True)
    tensor = {"pythonClassName": "Tensor", "tensor": {"shape": {"dimensions": ["3"]}, "dtype": "float32"}}
    seven = {"pythonClassName": "Tensor", "tensor": {"shape": {"dimensions": ["7"]}, "dtype": "float32"}}
    scalar = {"pythonClassName": "Scalar", "tensor": {"shape": {}, "dtype": "bool"}}
    shape = {"dimensions": [str(size[0]), str(size[1]), "3"]}
    observation = {
        "image": {"pythonClassName": "Image", "image": {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"}},
        "state": seven,
        "natural_language_instruction": {"pythonClassName": "Text", "text": {}},
    }
    action = {"world_vector": tensor, "rotation_delta": tensor, "open_gripper": scalar}
    groups = {
        name: {"featuresDict": {"features": group}}
        for name, group in (("observation", observation), ("action", action))
    }
    steps = {"sequence": {"feature": {"featuresDict": {"features": groups}}}, "pythonClassName": "Dataset"}
    (root / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": steps}}}))
    info = {
        "name": "bridge",
        "fileFormat": "tfrecord",
        "splits": [{"name": "train", "shardLengths": [str(len(lengths))]}],
    }
    (root / "dataset_info.json").write_text(json.dumps(info))
    with (root / "bridge-train.tfrecord-00000-of-00001").open("wb") as file:
        for episode, length in enumerate(lengths):
            data = _example(episode, length, size)
            head = len(data).to_bytes(8, "little")
            file.write(head + masked_checksum(head).to_bytes(4, "little"))
            file.write(data + masked_checksum(data).to_bytes(4, "little"))
    return root


def _example(episode: int, length: int, size: tuple[int, int]) -> bytes:
    def floats(values: np.ndarray) -> bytes:
        return _field(2, _field(1, values.astype("<f4").tobytes()))

    features = {
        "observation/image": _field(
            1, b"".join(_field(1, jpeg(picture(episode % 20, step % 10, 0, size))) for step in range(length))
        ),
        "observation/state": floats(numbers(episode, length, 7)),
        "observation/natural_language_instruction": _field(1, _field(1, b"open the drawer") * length),
        "action/world_vector": floats(numbers(episode, length, 3)),
        "action/rotation_delta": floats(numbers(episode, length, 3)),
        "action/open_gripper": _field(3, _field(1, bytes(step % 2 for step in range(length)))),
    }
    entries = [_field(1, _field(1, f"steps/{name}".encode()) + _field(2, value)) for name, value in features.items()]
    return _field(1, b"".join(entries))


def _field(number: int, data: bytes) -> bytes:
    length, size = b"", len(data)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data
