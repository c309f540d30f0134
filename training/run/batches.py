"""What training adds to the processor's batches: whence samples are, the padding, and the noise and divisors of the loss.

An optimizer step is a function of its samples alone, however processes and micro-batches share them.

Both losses are means over the whole step: over all its robot samples, and over all its answer tokens. Averaging one mean
per micro-batch instead would weigh a token among few others higher than a token among many.

Noise and time of the flow belong to a sample's place in the step. Processes therefore draw different ones, and a resumed
run draws the same ones again.

Three functions see to that, in this order: `count_samples` before the step's samples are known to other processes,
`set_loss_divisors` and `draw_noise_and_time` with the counts of all of them. The last two write into the batches, under
names of `SyVLAModel.forward`'s arguments. After the backward pass `absent_parts` names what none of the samples used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from syvla.modeling_syvla.flow_matching import sample_timesteps
from syvla.modeling_syvla.known_actions import draw_delays
from syvla.modeling_syvla.padding_free import padding_free_problem, set_padding_free

logger = logging.getLogger(__name__)


class TrainingCollator:
    """Collates items of a [`MixtureDataset`] and keeps the number of the dataset that each comes from.

    Args:
        collate: `SyVLAProcessor.collate`.
        length_bucket: Sequences are padded to a multiple of this many tokens, so that few different shapes occur: compiled
            kernels and cached memory are then used again. Ours. Samples are not sorted by length: that would draw samples
            of one kind together, and the share of each batch would no longer be exact.
    """

    def __init__(self, collate: Callable[..., Any], length_bucket: int = 1) -> None:
        self.collate, self.length_bucket = collate, length_bucket

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> Any:
        """The processor's batch; where the items have a source, with `source_ids` int64 (B,) and `rows`, B names."""
        for item in items:
            if "messages" not in item and item.get("actions") is None:
                thought = " but a thought, which alone trains no action" if item.get("thought") else ""
                raise ValueError(
                    f"actions: missing in a robot sample ({row_name(item) or item.get('text')!r}), which has none{thought}; "
                    "give actions (T, D_action), or make a chat of it: {'messages': ..., 'images': ...}"
                )
        sources: dict[str, Any] = {}
        if all("source" in item for item in items):
            sources["source_ids"] = torch.tensor([item["source"] for item in items])
            sources["rows"] = [row_name(item) for item in items]
        batch = self.collate(items, length_bucket=self.length_bucket)
        batch.update(sources)
        return batch


def row_name(item: Mapping[str, Any]) -> str:
    """Where a sample comes from, as far as it says: episode and frame, or row."""
    keys = (("episode_index", "episode"), ("frame_index", "frame"), ("row", "row"), ("index", "row"))
    parts = {text: item[key] for key, text in keys if item.get(key) is not None}
    if "episode" in parts:
        parts.pop("row", None)
    return ", ".join(f"{text} {value}" for text, value in parts.items())


def choose_padding_free(policy: Any, wanted: bool | None, *, length_bucket: int = 1, compiled: bool = False) -> bool:
    """Run the policy's VLM without padding tokens where that is possible; see `syvla.modeling_syvla.padding_free`.

    Args:
        policy: A [`SyVLAModel`].
        wanted: True: refuse what cannot be done; None: do it if it can be done, else warn once; False: pad.
        length_bucket, compiled: Settings that need sequences of few lengths.

    Returns:
        Whether padding is dropped.

    Raises:
        ValueError: If it is wanted and impossible.
    """
    problem = padding_free_problem(policy)
    if length_bucket > 1:
        problem = f"length_bucket={length_bucket} pads to a few lengths, which the tokens of whole batches do not have"
    elif compiled:
        problem = "torch_compile needs shapes that come again, and the number of real tokens is new in every batch"
    if wanted and problem:
        raise ValueError(f"padding_free: {problem}; set padding_free to false, or change the other setting")
    if wanted is None and problem:
        logger.warning("batches are padded: %s", problem)
    enabled = wanted is not False and problem is None
    set_padding_free(policy, enabled)
    return enabled


# ---------------------------------------------------------------------- noise and divisors of the loss


def count_samples(batches: Sequence[Any], config: Any) -> torch.Tensor:
    """Counts robot samples with actions, answer tokens, and the samples of each robot, in each micro-batch.

    Args:
        batches: Micro-batches of this process.
        config: The model's [`SyVLAConfig`].

    Returns:
        int64 (1, micro-batches, 2 + E), the robots in the order of `config.embodiments`; gathered along the first dimension
        it holds the counts of every process.
    """
    ids = [entry["id"] for entry in config.embodiments.values()]
    counts = torch.zeros(1, len(batches), 2 + len(ids), dtype=torch.long)
    for number, batch in enumerate(batches):
        if batch.get("actions") is not None:
            counts[0, number, 0] = (batch["embodiment_ids"] >= 0).sum()
            for column, robot in enumerate(ids, start=2):
                counts[0, number, column] = (batch["embodiment_ids"] == robot).sum()
        if batch.get("labels") is not None:
            counts[0, number, 1] = (batch["labels"][:, 1:] != -100).sum()
    return counts


def set_loss_divisors(batches: Sequence[Any], counts: torch.Tensor) -> None:
    """Adds `robot_samples` and `answer_tokens` to this process's micro-batches.

    They are what the model divides its loss sums by. With them the mean over processes and micro-batches, which is what
    data-parallel training and gradient accumulation take, is the loss of the whole step.

    Args:
        batches: Micro-batches of this process.
        counts: Counts of every process, (processes, micro-batches, 2 + E), from `count_samples`.
    """
    parts = counts.shape[0] * counts.shape[1]
    robot_samples, answer_tokens = counts[:, :, :2].sum(dim=(0, 1)).clamp(min=1).tolist()  # a step may lack one of them
    for batch in batches:
        batch["robot_samples"], batch["answer_tokens"] = robot_samples / parts, answer_tokens / parts


def draw_noise_and_time(
    batches: Sequence[Any], counts: torch.Tensor, rank: int, config: Any, seed: tuple[int, ...]
) -> None:
    """Adds what is random in their loss to this process's micro-batches that have actions.

    That is `noise` (B, T, D_action_max), `timestep` (B,) and, with the config's `simulated_delay`, `delay` (B,).

    A batch that already has noise keeps it. A model without a flow gets none.

    Args:
        batches: Micro-batches of this process.
        counts: Counts of every process, (processes, micro-batches, 2 + E), from `count_samples`.
        rank: Number of this process.
        config: The model's [`SyVLAConfig`].
        seed: Seed of the run and number of the step.
    """
    if config.action_head == "l1_regression":
        return
    robots = counts[:, :, 0].T  # in the order in which the sampler draws: process after process in a micro-batch
    first = (robots.flatten().cumsum(0) - robots.flatten()).view_as(robots)[:, rank].tolist()
    shape = (config.chunk_size, config.max_action_dim)
    time_distribution = (config.time_beta_alpha, config.time_beta_beta, config.time_max)
    for batch, begin in zip(batches, first, strict=True):
        if batch.get("actions") is None or "noise" in batch:
            continue
        size, device = len(batch["actions"]), batch["actions"].device
        noise, timestep = torch.zeros(size, *shape), torch.zeros(size)
        delay = torch.zeros(size, dtype=torch.int64)
        rows = (batch["embodiment_ids"] >= 0).nonzero()[:, 0].tolist()
        for number, row in enumerate(rows, start=begin):
            key = np.random.SeedSequence((*seed, number)).generate_state(1, dtype=np.uint64)
            generator = torch.Generator().manual_seed(int(key[0]))
            noise[row] = torch.randn(shape, generator=generator)
            timestep[row] = sample_timesteps(1, *time_distribution, torch.device("cpu"), generator)[0]
            if config.simulated_delay:
                delay[row] = draw_delays(1, config, generator)[0]
        batch["noise"], batch["timestep"] = noise.to(device), timestep.to(device)
        if config.simulated_delay:
            batch["delay"] = delay.to(device)


def absent_parts(policy: Any, counts: torch.Tensor) -> Iterator[nn.Module]:
    """Modules that no sample of the step uses: coders of absent robots; without any robot all that acts.

    Args:
        policy: The [`SyVLAModel`].
        counts: Counts of every process, (processes, micro-batches, 2 + E), from `count_samples`.
    """
    present = (counts[:, :, 2:] > 0).any(dim=1).any(dim=0).tolist()
    if not any(present):
        yield from (policy.expert, policy.adapter)
        return
    for name, here in zip(policy.config.embodiments, present, strict=True):
        if not here:
            yield policy.expert.embodiments[name]
