"""Makes `rlds_tiny` beside this file with tensorflow-datasets' own writer: two episodes of the layout of the Open X set of
Bridge V2, with steps of every kind that the sets have. Run it in an environment that has tensorflow-datasets.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

ROOT = Path(__file__).resolve().parent / "rlds_tiny"
LENGTHS = (4, 6)


def image(episode: int, step: int) -> np.ndarray:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[..., 0] = 20 * step
    picture[..., 1] = 100 * episode
    picture[:8, :, 2] = 250
    return picture


class Bridge(tfds.core.GeneratorBasedBuilder):
    """The builder, whose name is the dataset's."""

    VERSION = tfds.core.Version("0.1.0")
    pkg_dir_path = ROOT.parent  # a script has none of its own

    def _info(self):
        features = tfds.features
        step = {
            "observation": {
                "image": features.Image(shape=(16, 24, 3), dtype=np.uint8, encoding_format="png"),
                "image_1": features.Image(shape=(16, 24, 3), dtype=np.uint8, encoding_format="jpeg"),
                "state": features.Tensor(shape=(7,), dtype=np.float32),
                "natural_language_instruction": features.Text(),
                "natural_language_embedding": features.Tensor(shape=(4,), dtype=np.float32),
                "double": features.Tensor(shape=(2,), dtype=np.float64),
                "matrix": features.Tensor(shape=(2, 3), dtype=np.float32),
                "packed": features.Tensor(shape=(2,), dtype=np.float32, encoding="zlib"),
            },
            "action": {
                "world_vector": features.Tensor(shape=(3,), dtype=np.float32),
                "rotation_delta": features.Tensor(shape=(3,), dtype=np.float32),
                "open_gripper": features.Scalar(dtype=np.bool_),
                "code": features.Scalar(dtype=np.int64),
            },
            "is_first": features.Scalar(dtype=np.bool_),
            "is_last": features.Scalar(dtype=np.bool_),
        }
        episode = {"steps": features.Dataset(step), "episode_metadata": {"file_path": features.Text()}}
        return self.dataset_info_from_configs(features=features.FeaturesDict(episode))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for episode, length in enumerate(LENGTHS):
            steps = [
                {
                    "observation": {
                        "image": image(episode, step),
                        "image_1": image(episode, step)[::-1],
                        "state": np.arange(7, dtype=np.float32) / 10 + step + 10 * episode,
                        "natural_language_instruction": f"put the pot in sink {episode}",
                        "natural_language_embedding": np.zeros(4, np.float32),
                        "double": np.array([step / 3, -1.0]),
                        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
                        "packed": np.zeros(2, np.float32),
                    },
                    "action": {
                        "world_vector": np.array([step, -step, 0.5], np.float32),
                        "rotation_delta": np.array([0.25, step / 4, -1], np.float32),
                        "open_gripper": step % 3 == 0,
                        "code": -(2**40) * step,
                    },
                    "is_first": step == 0,
                    "is_last": step == length - 1,
                }
                for step in range(length)
            ]
            yield episode, {"steps": steps, "episode_metadata": {"file_path": f"{episode}.npy"}}


def main() -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    tfds.core.utils.gcs_utils._is_gcs_disabled = True
    with tempfile.TemporaryDirectory() as folder:
        builder = Bridge(data_dir=folder)
        builder.download_and_prepare()
        shutil.copytree(Path(folder) / "bridge/0.1.0", ROOT)


if __name__ == "__main__":
    main()
