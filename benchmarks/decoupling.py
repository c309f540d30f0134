"""Cost of Intention Decoupling per training step: `python -m benchmarks.decoupling [--device cuda]`.

Times forward and backward of one model at the paper's proportions (all widths and depths divided alike, 3 views of 224 px)
with and without Intention Decoupling, all variants in turn within one run: the exact form, and
`cross_attention_scope="suffix"`, whose prefix both passes share; with VLM checkpointing; with a multi-modal sample for every
two robot samples; and with each saving taken away. FLOPs are counted, of the model that runs and of the paper's size.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.machine_bound import describe_device, device_name, dtype_of, synchronize
from benchmarks.paper_size_flops import counted_ratios
from benchmarks.process_memory import keep_freed_memory
from benchmarks.reporting import FlopCount, interleaved_rounds, print_table, write_section
from benchmarks.scaled_model import make_batch, scaled_config
from syvla.modeling_syvla import SyVLAModel, intention_decoupling
from syvla.modeling_syvla.action_expert import EncodedObservation, ExpertContext
from syvla.modeling_syvla.padding_free import set_padding_free


@dataclass(frozen=True)
class Variant:
    """One kind of training step.

    Attributes:
        scope: `cross_attention_scope`.
        decoupling: With Intention Decoupling.
        checkpointing: Of the VLM.
        chats: Multi-modal samples beside twice as many robot samples.
        without: Saving that is taken away from pass 1: "image features", "weight gradients" or "prefix".
    """

    scope: str = "all"
    decoupling: bool = True
    checkpointing: bool = False
    chats: bool = False
    without: str | None = None

    @property
    def baseline(self) -> Variant:
        return Variant(self.scope, False, self.checkpointing, self.chats)


EXACT, SUFFIX = Variant(), Variant("suffix")
CHECKPOINTED, SUFFIX_CHECKPOINTED = Variant(checkpointing=True), Variant("suffix", checkpointing=True)
MIXED = Variant(chats=True)
VARIANTS: dict[str, Variant] = {
    "off": EXACT.baseline,
    "exact": EXACT,
    "exact, images encoded again": Variant(without="image features"),
    "exact, weight gradients in pass 1": Variant(without="weight gradients"),
    "suffix, off": SUFFIX.baseline,
    "suffix": SUFFIX,
    "suffix, prefix again": Variant("suffix", without="prefix"),
    "checkpointed, off": CHECKPOINTED.baseline,
    "checkpointed, exact": CHECKPOINTED,
    "checkpointed suffix, off": SUFFIX_CHECKPOINTED.baseline,
    "checkpointed suffix": SUFFIX_CHECKPOINTED,
    "2 robots + 1 chat, off": MIXED.baseline,
    "2 robots + 1 chat, exact": MIXED,
}
NAMES = {variant: name for name, variant in VARIANTS.items()}
RESULTS = {  # key of the result -> variant whose time is compared with its baseline's
    "ratio_exact": EXACT,
    "ratio_shared_prefix": SUFFIX,
    "ratio_exact_vlm_checkpointing": CHECKPOINTED,
    "ratio_shared_prefix_vlm_checkpointing": SUFFIX_CHECKPOINTED,
    "ratio_exact_one_third_multimodal": MIXED,
}


@contextmanager
def saving_taken_away(model: SyVLAModel, saving: str | None, batch: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within it, pass 1 computes again what it would share, or gradients that nobody needs."""
    if saving is None:
        yield
        return
    if saving == "weight gradients":
        weights = [p for part in (model.adapter, model.expert) for p in part.parameters()]

        def all_gradients(per_sample_loss: torch.Tensor, query_states: torch.Tensor) -> torch.Tensor:
            wanted = [query_states, *weights]
            return torch.autograd.grad(per_sample_loss.sum(), wanted, allow_unused=True)[0].float().norm(dim=-1)

        with patch.object(intention_decoupling, "gradient_norms", all_gradients):
            yield
        return
    encode_context, passes = model.expert.encode_context, iter((1, 2))

    def again(encoded: EncodedObservation, condition: torch.Tensor, mask: torch.Tensor | None) -> ExpertContext:
        if next(passes) == 1 and saving == "prefix":
            encoded = replace(encoded, prefix=None)
        elif saving == "image features":
            views = encoded.observation.view_mask
            features = model.expert.encode_images(batch["expert_pixel_values"].to(model.dtype), views)
            encoded = replace(encoded, image_features=features)
        return encode_context(encoded, condition, mask)

    with patch.object(model.expert, "encode_context", again):
        yield


class Step:
    """Forward and backward of a variant."""

    def __init__(self, models: dict[str, SyVLAModel], variant: Variant, batch: dict[str, torch.Tensor]) -> None:
        self.model, self.variant, self.batch = models[variant.scope], variant, batch

    def __call__(self) -> None:
        model, variant = self.model, self.variant
        model.config.intention_decoupling = variant.decoupling
        if variant.checkpointing:
            model.vlm.gradient_checkpointing_enable()
        else:
            model.vlm.gradient_checkpointing_disable()
        model.zero_grad(set_to_none=True)
        with saving_taken_away(model, variant.without, self.batch):
            model(**self.batch).loss.backward()


def build_models(options: argparse.Namespace) -> dict[str, SyVLAModel]:
    models = {}
    for scope in ("all", "suffix"):
        torch.manual_seed(0)
        config = scaled_config(options.width, options.depth, cross_attention_scope=scope)
        models[scope] = SyVLAModel(config).to(options.device, dtype_of(options.dtype)).train()
        set_padding_free(models[scope])
    return models


def moved(batch: dict[str, torch.Tensor], options: argparse.Namespace) -> dict[str, torch.Tensor]:
    return {
        name: x.to(options.device, dtype_of(options.dtype) if x.is_floating_point() and "pixel" in name else None)
        for name, x in batch.items()
    }


def ratio(times: dict[str, list[float]], variant: Variant) -> dict[str, float]:
    """Time of a variant over that of its baseline, round by round: median, least and most."""
    pairs = zip(times[NAMES[variant]], times[NAMES[variant.baseline]], strict=True)
    ratios = [on / off for on, off in pairs]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def optimizer_seconds(model: SyVLAModel, options: argparse.Namespace) -> float:
    """Median time of a fused AdamW step, which every variant has to add."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step: Callable[[], Any] = optimizer.step
    times = interleaved_rounds({"step": step}, 3, lambda: synchronize(options.device))
    return statistics.median(times["step"])


def main(argv: Sequence[str] | None = None) -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--width", type=int, default=1 if on_gpu else 4, help="divisor of the paper's widths")
    parser.add_argument("--depth", type=int, default=1 if on_gpu else 3, help="divisor of the paper's depths")
    parser.add_argument("--batch-size", type=int, default=4 if on_gpu else 1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-paper-size", action="store_true", help="leave out the counts at the paper's size")
    options = parser.parse_args(argv)
    keep_freed_memory()
    models = build_models(options)
    size = options.batch_size
    batch = moved(make_batch(models["all"].config, size), options)
    mixed = moved(make_batch(models["all"].config, 2 * size, chats=size), options)
    steps = {name: Step(models, variant, mixed if variant.chats else batch) for name, variant in VARIANTS.items()}
    flops = {}
    for name, step in steps.items():
        with FlopCount() as counter:
            step()
        flops[name] = counter.total
    times = interleaved_rounds(dict(steps), options.repeats, lambda: synchronize(options.device))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    optimizer = optimizer_seconds(models["all"], options)
    paper = {} if options.no_paper_size else counted_ratios()
    rows = []
    for name, variant in VARIANTS.items():
        base = NAMES[variant.baseline]
        spread = ratio(times, variant)
        rows.append(
            [
                name,
                flops[name] / 1e9,
                seconds[name],
                flops[name] / flops[base],
                spread["median"],
                f"{spread['least']:.3f} .. {spread['most']:.3f}",
                paper.get(name, ""),
            ]
        )
    print_table(
        ["training step", "GFLOP", "s", "x counted", "x measured", "rounds", "x counted at the paper's size"], rows
    )
    result: dict[str, Any] = {key: ratio(times, variant)["median"] for key, variant in RESULTS.items()}
    result |= {f"counted_{key}": flops[NAMES[v]] / flops[NAMES[v.baseline]] for key, v in RESULTS.items()}
    with_optimizer = (seconds["exact"] + optimizer) / (seconds["off"] + optimizer)
    result |= {
        "ratio_exact_with_optimizer": with_optimizer,
        "optimizer_seconds": optimizer,
        "counted_at_paper_size": paper,
        "contributions": contributions(times, flops),
        "rounds": {name: ratio(times, variant) for name, variant in VARIANTS.items() if variant.decoupling},
        "seconds": {name: {"median": seconds[name], "least": min(t), "most": max(t)} for name, t in times.items()},
        "gflops_per_step": {name: count / 1e9 for name, count in flops.items()},
        "settings": {key: value for key, value in vars(options).items() if key != "no_paper_size"},
    }
    print(write_section("decoupling", device_name(options.device), result, describe_device(options.device)))


def contributions(times: dict[str, list[float]], flops: dict[str, int]) -> dict[str, dict[str, float]]:
    """How much of the step without decoupling each saving spares, measured and counted."""
    found = {}
    for name, variant in VARIANTS.items():
        if variant.without is None:
            continue
        whole = NAMES[Variant(variant.scope)]
        base = NAMES[variant.baseline]
        rounds = zip(times[name], times[whole], times[base], strict=True)
        measured = statistics.median((lost - kept) / off for lost, kept, off in rounds)
        found[variant.without] = {"measured": measured, "counted": (flops[name] - flops[whole]) / flops[base]}
    return found


if __name__ == "__main__":
    main()
