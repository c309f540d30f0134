"""What belongs into a chunk's steps after the end of an episode: `python -m benchmarks.chunk_end --output outputs/chunk_end`.

Trains the tiny policy of `make demo` once per `chunk_end`, chunk length and seed, with the same data, steps and noise, and
measures each twice:

- error: squared error of the *real* steps of held-out chunks with at least half padding, in normalized units, from the same
  noise. "as trained" puts into the padded steps what training put there, at every flow step; "as served" lets the policy
  fill them, as a robot gets it. Where both agree, training saw what inference sees.
- closed loop: successes on evaluation seeds, which no demonstration uses; `--episodes 0` leaves it out.

Every run's raw outcomes, per held-out chunk and per episode, stand in `runs/*.json`. Started again it goes on with the runs
that are missing, so seeds can be added.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reporting import print_table
from syvla.durable_files import write_json
from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.demonstration_recording import record_demonstrations
from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.modeling_syvla.configuration_syvla import CHUNK_ENDS
from syvla.modeling_syvla.expert_inputs import ExpertObservation, end_chunks
from syvla.modeling_syvla.flow_matching import euler_sample, interpolate
from syvla.processing import RobotDataset, build_tiny_processor
from syvla.training.demo import CAMERAS, EMBODIMENT, RECIPE
from syvla.training.finetune import main as finetune

HELDOUT_SHARE = 1 / 6


@dataclass(frozen=True)
class Run:
    """One trained policy."""

    task: str
    chunk_size: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.chunk_size}-{self.arm}-{self.seed}"


def split(dataset: RobotDataset) -> tuple[list[int], list[int]]:
    """Episodes to train on and held-out ones, the last of the recording."""
    held = max(1, round(HELDOUT_SHARE * dataset.num_episodes))
    return list(range(dataset.num_episodes - held)), list(range(dataset.num_episodes - held, dataset.num_episodes))


def train(run: Run, data: Path, folder: Path, steps: int, batch: int) -> Path:
    """Builds the base, whose weights depend on chunk length and seed alone, and trains it. Returns the checkpoint."""
    checkpoint = folder / "checkpoint"
    if (checkpoint / "model.safetensors").is_file():
        return checkpoint
    config = SyVLAConfig.tiny(chunk_size=run.chunk_size, chunk_end=run.arm)
    whole = RobotDataset(data, embodiment=EMBODIMENT, cameras=CAMERAS, chunk_size=run.chunk_size)
    processor = build_tiny_processor(config)
    processor.set_embodiment(
        EMBODIMENT, whole.statistics(), state_names=whole.state_names, action_names=whole.action_names,
        control_hz=whole.fps, cameras=dict(whole.cameras),
    )  # fmt: skip
    torch.manual_seed(run.seed)
    SyVLAModel(config).save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    spec = {"path": str(data), "embodiment": EMBODIMENT, "cameras": CAMERAS, "episodes": split(whole)[0]}
    options = {
        "config": RECIPE,
        "model_path": folder / "base",
        "robot_datasets": json.dumps(spec),
        "output_dir": checkpoint,
        "max_steps": steps,
        "warmup_steps": min(100, steps // 10),
        "per_device_train_batch_size": batch,
        "seed": run.seed,
        "disable_tqdm": True,
    }
    if finetune([text for name, value in options.items() for text in (f"--{name}", str(value))]):
        raise SystemExit(f"{run.name}: training failed")
    return checkpoint


@torch.no_grad()
def chunk_errors(run: Run, checkpoint: Path, data: Path, draws: int = 2) -> list[dict[str, Any]]:
    """Error of the real steps of each held-out chunk with at least half padding, as trained and as served."""
    from transformers import AutoProcessor

    model, processor = SyVLAModel.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(checkpoint)
    dataset = RobotDataset(data, embodiment=EMBODIMENT, cameras=CAMERAS, chunk_size=run.chunk_size)
    held = dataset.__class__(
        data, embodiment=EMBODIMENT, cameras=CAMERAS, chunk_size=run.chunk_size, episodes=split(dataset)[1]
    )
    items = [item for item in (held[i] for i in range(len(held))) if item["action_is_pad"].mean() >= 0.5]
    found = []
    for low in range(0, len(items), 32):
        part = items[low : low + 32]
        for draw in range(draws):
            for way, errors in errors_of_both_ways(run, model, processor.collate(part), 1000 * draw + low).items():
                found += [
                    {
                        "episode": item["episode_index"],
                        "frame": item["frame_index"],
                        "draw": draw,
                        "way": way,
                        "error": e,
                    }
                    for item, e in zip(part, errors, strict=True)
                ]
    return found


def errors_of_both_ways(run: Run, model: SyVLAModel, batch: Any, seed: int) -> dict[str, list[float]]:
    """Squared error per real entry of each chunk, from the same noise, as trained and as served."""
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    hidden = model.encode(**{name: batch[name] for name in names})
    observation = ExpertObservation.checked(
        model.config, len(hidden), batch["state"], batch["embodiment_ids"], batch["expert_pixel_values"],
        batch["expert_view_mask"],
    )  # fmt: skip
    context = model.encode_expert_context(model.select_query_states(hidden, batch["input_ids"]), observation)
    real = batch["action_mask"].any(-1)  # (B, T)
    ended, _ = end_chunks(run.arm, batch["actions"], batch["action_mask"])
    attended = real if run.arm == "masked" else None
    noise = torch.randn(ended.shape, generator=torch.Generator().manual_seed(seed))

    def as_trained(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = torch.where(real[..., None], x, interpolate(noise, ended, t))
        return model.expert.predict_velocity(x, t, context, attended)

    def as_served(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model.expert.predict_velocity(x, t, context)

    result = {}
    for way, velocity in (("as trained", as_trained), ("as served", as_served)):
        chunk = euler_sample(velocity, noise, model.config.num_inference_steps)
        error = torch.where(batch["action_mask"], (chunk - batch["actions"]).square(), 0.0).sum((1, 2))
        result[way] = (error / batch["action_mask"].sum((1, 2))).tolist()
    return result


def measure(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures one policy, or reads what an earlier start measured."""
    output = Path(options.output)
    path = output / "runs" / f"{run.name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    data, folder = output / f"dataset-{run.task}", output / "policies" / run.name
    if result is None:
        checkpoint = train(run, data, folder, options.train_steps, options.batch_size)
        result = {
            "run": vars(run) | {"train_steps": options.train_steps, "batch_size": options.batch_size},
            "chunks": chunk_errors(run, checkpoint, data),
            "episodes": [],
        }
    if len(result["episodes"]) < options.episodes:
        closed = evaluate_closed_loop(
            str(folder / "checkpoint"), "tabletop", run.task, episodes=options.episodes, batch_size=20,
            replan_steps=max(1, run.chunk_size // 2), output=folder / "closed_loop", progress=False,
        )  # fmt: skip
        result["episodes"] = [{"seed": r.seed, "success": bool(r.success), "steps": r.steps} for r in closed.records]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result


def table(results: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """A row per task, chunk length and arm: over seeds, mean error of each way and successes."""
    rows = []
    keys = sorted({(r["run"]["task"], r["run"]["chunk_size"], r["run"]["arm"]) for r in results})
    for task, chunk_size, arm in keys:
        own = [
            r for r in results if (r["run"]["task"], r["run"]["chunk_size"], r["run"]["arm"]) == (task, chunk_size, arm)
        ]
        errors = [
            float(np.mean([c["error"] for r in own for c in r["chunks"] if c["way"] == way]))
            for way in ("as trained", "as served")
        ]
        episodes = [e["success"] for r in own for e in r["episodes"]]
        rows.append(
            [task, chunk_size, arm, len(own), *(f"{e:.4f}" for e in errors), f"{sum(episodes)}/{len(episodes)}"]
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/chunk_end")
    parser.add_argument("--tasks", nargs="+", default=["lift"])
    parser.add_argument("--chunks", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--arms", nargs="+", default=list(CHUNK_ENDS), choices=CHUNK_ENDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--train-steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=200, help="closed-loop episodes per policy; 0: none")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for task in options.tasks:
        record_demonstrations(
            Path(options.output) / f"dataset-{task}", episodes=options.demonstrations, tasks=(task,), progress=False
        )
    results = []
    for seed in options.seeds:
        for task in options.tasks:
            for chunk_size in options.chunks:
                for arm in options.arms:
                    results.append(measure(Run(task, chunk_size, arm, seed), options))
                    print("done", Run(task, chunk_size, arm, seed).name, flush=True)
    print_table(["task", "chunk", "arm", "seeds", "as trained", "as served", "successes"], table(results))


if __name__ == "__main__":
    main()
