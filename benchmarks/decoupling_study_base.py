"""The language model that all arms of a seed start from: it reads tables, and thinks, before it meets a robot.

A policy in use starts from a pretrained vision-language model. Here it is trained on text alone, on two kinds of samples in
equal number: an instruction, with what lies on the table, and its thought; and a table with six questions for the place of a
thing. Without the latter, finding a name's place takes a model of this size very long. Instructions are the seen ones only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.decoupling_study_language import (
    END,
    PLACES,
    START,
    TARGETS,
    TASKS,
    TextBatch,
    disturbed_prompt,
    full_thought,
    requests,
    scene_text,
    sequence_ids,
    text_batch,
    vocabulary,
    words,
)
from benchmarks.decoupling_study_plan import ARMS, Recipe
from benchmarks.decoupling_study_policy import make_model
from syvla.durable_files import write_atomically
from syvla.modeling_syvla import SyVLAModel

LOOKUPS = 6  # questions for a place in one sequence


def thought_sample(recipe: Recipe, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Ids and labels of a table, an instruction and its thought."""
    task = TASKS[int(rng.integers(len(TASKS)))]
    own = [number for number, (name, _) in enumerate(TARGETS) if name == task]
    count = 2 if task == "place_named" else 2 + int(rng.integers(2))
    things = [int(thing) for thing in rng.permutation(own)[:count]]
    options = requests(things[int(rng.integers(count))])
    request = options[int(rng.integers(len(options)))]
    prompt = disturbed_prompt(request.text, things, recipe.word_noise, rng)
    return sequence_ids(prompt, full_thought(request, things), 0)


def lookup_sample(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Ids and labels of a table of any things, and of `LOOKUPS` names on it, each with its place."""
    ids_of = vocabulary()
    things = [int(thing) for thing in rng.permutation(len(TARGETS))[: len(PLACES)]]
    prompt = [START, *(ids_of[word] for word in words(scene_text(things))), END, START]
    asked = rng.integers(len(things), size=LOOKUPS)
    pairs: Sequence[tuple[int, int]] = [(ids_of[TARGETS[things[place]][1]], ids_of[PLACES[place]]) for place in asked]
    ids = prompt + [token for pair in pairs for token in pair] + [END]
    labels = [-100] * len(prompt) + [token for _, place in pairs for token in (-100, place)] + [-100]
    return ids, labels


def base_batch(recipe: Recipe, rng: np.random.Generator) -> TextBatch:
    """`base_texts` samples of each kind."""
    thoughts = [thought_sample(recipe, rng) for _ in range(recipe.base_texts)]
    return text_batch([*thoughts, *(lookup_sample(rng) for _ in range(recipe.base_texts))])


def pretrain(recipe: Recipe, seed: int) -> dict[str, torch.Tensor]:
    """Weights of the language model after its own training; they depend on recipe and seed alone."""
    model = make_model(recipe, ARMS["off"], seed).train()
    rng = np.random.default_rng([seed, 11])
    weights = [weight for name, weight in model.vlm.named_parameters() if "visual" not in name]
    rate = recipe.base_learning_rate
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=recipe.base_steps, pct_start=0.1)
    for _ in range(recipe.base_steps):
        batch = base_batch(recipe, rng)
        loss = model.lm_loss(model.encode(batch.ids, batch.mask), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    return {name: weight.detach().clone() for name, weight in model.vlm.named_parameters()}


def base_path(recipe: Recipe, seed: int, folder: Path) -> Path:
    """Where the language model of a training seed is kept, beside the folder of the runs."""
    names = ("vlm_width", "vlm_layers", "base_steps", "base_texts", "base_learning_rate", "word_noise")
    key = hashlib.sha256(json.dumps([getattr(recipe, name) for name in names]).encode()).hexdigest()[:12]
    return folder.parent / "bases" / f"{seed}_{key}.safetensors"


def prepare_base(recipe: Recipe, seed: int, folder: Path) -> Path:
    """Pretrains the language model of a training seed, once for all arms; where it is kept."""
    torch.set_num_threads(1)
    path = base_path(recipe, seed, folder)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = pretrain(recipe, seed)
        write_atomically(path, lambda temporary: save_file(weights, temporary))
    return path


def start_from(model: SyVLAModel, path: Path) -> None:
    """Puts the pretrained weights into the model's language model."""
    found = load_file(path)
    with torch.no_grad():
        for name, weight in model.vlm.named_parameters():
            weight.copy_(found[name])
