"""The journey of a training sample through the code, for `benchmarks.journeys`: dataset row -> optimizer step."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

VIEWS, STATE_DIM = ("center", "left_wrist", "right_wrist"), 14


def row_to_step(trace: Any) -> None:
    """Dataset row -> optimizer step: `SyVLATrainer` on one robot sample per step, a recorded dataset and a tiny model.

    A passage begins where the trainer asks for the step's samples and ends where the optimizer is about to step. The data
    loader reads one batch ahead, so the row that is read is that of the following step.

    Args:
        trace: `benchmarks.journeys.Trace`.
    """
    from transformers import TrainerCallback

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import RobotDataset, RobotDatasetWriter, build_tiny_processor
    from syvla.training.imitation.trainer import SyVLATrainer
    from syvla.training.run.arguments import SyVLATrainingArguments

    class Passages(TrainerCallback):
        """Opens a passage at the end of each step but the first two, and closes it at the next optimizer step."""

        def __init__(self) -> None:
            self.open = ExitStack()

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            self.open.close()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if 2 <= state.global_step < state.max_steps:  # tables are filled and code is compiled
                self.open.enter_context(trace.passage())

    features = {f"observation.images.{view}": {"dtype": "image", "shape": [32, 32, 3]} for view in VIEWS}
    features |= {key: {"dtype": "float32", "shape": [STATE_DIM]} for key in ("observation.state", "action")}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "recorded"
        with RobotDatasetWriter(root, fps=10, features=features, use_videos=False) as writer:
            for _ in range(12):
                frame = {key: np.zeros(feature["shape"], np.float32) for key, feature in features.items()}
                frame |= {key: value.astype(np.uint8) for key, value in frame.items() if "images" in key}
                writer.add_frame(frame, "lift the red cube")
            writer.save_episode()
        config = SyVLAConfig.tiny()
        processor = build_tiny_processor(config)
        statistics = {"mean": np.zeros(STATE_DIM), "std": np.ones(STATE_DIM)}
        processor.set_embodiment("tabletop", {"state": statistics, "action": statistics})
        trainer = SyVLATrainer(
            SyVLAModel(config),
            SyVLATrainingArguments(
                output_dir=str(Path(folder) / "run"),
                per_device_train_batch_size=1,
                max_steps=6,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
            ),
            processing_class=processor,
            train_dataset=RobotDataset(
                root,
                embodiment="tabletop",
                cameras={view: f"observation.images.{view}" for view in VIEWS},
                chunk_size=processor.chunk_size,
            ),
            callbacks=[Passages()],
        )
        with trace.installed(this_thread=True):
            trainer.train()
