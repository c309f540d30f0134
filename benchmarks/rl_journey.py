"""The journey of a rollout through the code, for `benchmarks.journeys`: rollout -> reward -> update -> published policy.

A real server on loopback, the trainer in the main thread, a tiny model; a robot's client asks for two chunks, ends its episode
and labels it, the trainer finds it, takes one step and publishes. Watched are the server's threads and the trainer, from the
first request for actions to the return of the publication. The client, the page and the beginning of the episode are not.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

VIEW, STATE_DIM, SIZE = "center", 4, 32
UPDATES = 4
TICKS = (  # what threads do by the clock while they wait; how often depends on the machine, not on the journey
    "BatchingWorker._drop_dead",
    "ActService.watch_sessions",
    "ActService._count_vlm_runs",
    "SessionTable.expire",
    "SyVLABackend.take_vlm_seconds",
    "_DrainingServer._drain",
    "_DrainingServer.main_loop",
    "RLScheduler._follow",
    "RLScheduler._look_at_progress",
    "RLScheduler._look_for_policy",
    "RLEpisodes.abort_silent",
)


def rollout_to_policy(trace: Any) -> None:
    """Rollout -> reward -> update -> published policy.

    Args:
        trace: `benchmarks.journeys.Trace`.
    """
    with tempfile.TemporaryDirectory() as folder, trace.installed(this_thread=True):
        root = Path(folder)
        _make_parts(root)
        handshake = _Handshake()
        trainer = _trainer(root, handshake)
        robot = threading.Thread(target=_drive, args=(root, trace, handshake), daemon=True)
        robot.start()
        trainer.train()
        robot.join(60)


class _Handshake:
    """Tells the robot that a version is published, and the trainer that the passage is over."""

    def __init__(self) -> None:
        self.published, self.noted = threading.Event(), threading.Event()

    def tell(self) -> None:
        self.published.set()
        self.noted.wait(60)
        self.noted.clear()

    def wait(self) -> None:
        self.published.wait(300)
        self.published.clear()


def _drive(root: Path, trace: Any, handshake: _Handshake) -> None:
    """The robot: one episode per update, beginning when the last update's policy is published."""
    from syvla.serving import PolicyServer
    from syvla.serving.client.rl_client import RLClient
    from syvla.serving.policies.backend import SyVLABackend
    from syvla.serving.rl.scheduler import RLScheduler, RLSettings
    from syvla.serving.server.settings import ServerSettings

    sys.setprofile(None)  # the client is not part of it
    handshake.wait()  # version 0
    handshake.noted.set()
    settings = RLSettings(
        root / "run", ahead=UPDATES, poll_s=15.0
    )  # seldom, so that few passages hold a look at the run
    scheduler = RLScheduler(settings, lambda path: SyVLABackend.from_pretrained(str(path), device="cpu"))
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    server = PolicyServer(None, ServerSettings(port=0), rl=scheduler).start(120)
    client = RLClient(f"http://{server.url}")
    for number in range(UPDATES):
        client.begin()
        time.sleep(1)  # what the trainer does after a publication is over
        with trace.passage(timers=TICKS):
            for decision in range(2):
                extras: dict[str, Any] = {"executed_steps": 2} if decision else {}
                client.act({VIEW: image}, np.zeros(STATE_DIM), "reach", **extras)
            client.end(2)
            client.reward(number % 2)
            handshake.wait()
        handshake.noted.set()
    server.stop()


def _make_parts(root: Path) -> None:
    """A tiny policy, its value model and four demonstrations."""
    import torch

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel, SyVLAValueConfig, SyVLAValueModel
    from syvla.processing import RobotDataset, RobotDatasetWriter, build_tiny_processor
    from syvla.training.rl.value_fit import write_fit

    rng = np.random.default_rng(0)
    features = {
        key: {"dtype": "float32", "shape": [STATE_DIM], "names": None} for key in ("observation.state", "action")
    }
    features[f"observation.images.{VIEW}"] = {
        "dtype": "image",
        "shape": [SIZE, SIZE, 3],
        "names": ["height", "width", "channels"],
    }
    with RobotDatasetWriter(root / "data", fps=10, features=features, use_videos=False) as writer:
        for _ in range(4):
            for _ in range(10):
                frame = {key: rng.normal(size=STATE_DIM).astype(np.float32) for key in ("observation.state", "action")}
                frame[f"observation.images.{VIEW}"] = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                writer.add_frame(frame, "reach")
            writer.save_episode()
    config = SyVLAConfig.tiny(embodiments={"arm": {"state_dim": STATE_DIM, "action_dim": STATE_DIM}})
    processor = build_tiny_processor(config)
    processor.set_embodiment("arm", RobotDataset(root / "data", embodiment="arm").statistics())
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(root / "policy")
    processor.save_pretrained(root / "policy")
    value = SyVLAValueConfig.tiny(embodiments=config.embodiments, views=list(processor.views))
    SyVLAValueModel(value).save_pretrained(root / "value")
    write_fit(root / "value", processor, {"gamma": 0.99}, ["arm"])


def _trainer(root: Path, handshake: _Handshake) -> Any:
    from transformers import AutoModel, AutoProcessor

    from syvla.processing import RobotDataset
    from syvla.training import SyVLAPPOConfig, SyVLAPPOTrainer
    from syvla.training.rl.expert_samples import ExpertSamples
    from syvla.training.rl.policy_publisher import FolderPublisher
    from syvla.training.rl.rollout_store import LeRobotRolloutStore

    class _Publisher(FolderPublisher):
        def publish(self, version: int, policy_version: str, save: Any) -> None:
            super().publish(version, policy_version, save)
            handshake.tell()

    args = SyVLAPPOConfig(
        output_dir=str(root / "run"),
        rollouts_per_update=1,
        max_rl_updates=UPDATES,
        max_staleness=UPDATES,
        steps_per_update=1,
        per_device_train_batch_size=2,
        expert_mode="random",
        guard_samples=2,
        guard_heldout_cfm=1e9,
        target_kl=0,
        value_fit_max_steps=0,
        min_advantage_spread=0,
        poll_seconds=8,
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1000,
    )
    processor = AutoProcessor.from_pretrained(root / "policy")
    dataset = RobotDataset(root / "data", embodiment="arm", chunk_size=processor.chunk_size)
    return SyVLAPPOTrainer(
        args=args,
        processing_class=processor,
        model=AutoModel.from_pretrained(root / "policy"),
        value_model=AutoModel.from_pretrained(root / "value"),
        rollout_store=LeRobotRolloutStore(root / "run" / "rollouts"),
        experts=ExpertSamples([dataset], heldout_share=0.25, outcome_key=None, seed=0),
        publisher=_Publisher(root / "run" / "policies", keep=UPDATES + 1),
    )
