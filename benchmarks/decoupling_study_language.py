"""Words of `benchmarks.decoupling_study`: what is asked, what is thought, and the token ids of both.

A tiny language model that starts from random weights gets one token for each word, so that its sequences are short. In place
of a picture it reads what lies on the table, from left to right, before the instruction. The thought works out what is asked
for, and ends with its place; it holds for the whole episode, as with a slow VLM beside a fast expert (section 3.1 of the
paper). The action needs the place alone: what it was worked out from, and what the thing is, is reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch

from syvla.evaluation.environments.tabletop import arithmetic_instructions, bagging_catalog
from syvla.evaluation.environments.tabletop.choice_tasks import ASPECTS_OF, SEEN_NAMINGS, UNSEEN_NAMINGS
from syvla.evaluation.environments.tabletop.scene import COLORS
from syvla.modeling_syvla.configuration_syvla import TINY_TOKEN_IDS, TINY_VOCABULARY_SIZE

TASKS = ("calculating", "bagging", "place_named")
TARGETS: tuple[tuple[str, str], ...] = (
    *(("calculating", str(digit)) for digit in range(10)),
    *(("bagging", item.name) for item in bagging_catalog.CATALOG),
    *(("place_named", color) for color in COLORS),
)
"""What can be asked for: task, and digit, item or color. The place in this list is the target's number."""

PLACES = ("first", "second", "third")
"""From left to right."""

START, END = TINY_TOKEN_IDS["<|im_start|>"], TINY_TOKEN_IDS["<|im_end|>"]
PAD, QUERY = TINY_TOKEN_IDS["<|endoftext|>"], TINY_TOKEN_IDS["<|action_query|>"]


@dataclass(frozen=True)
class Request:
    """One way to ask for a target.

    Attributes:
        text, thought: Instruction, and what follows from it, without the place.
        target: Number in `TARGETS`.
        group: What requests of the same expression share: problem, wish or name. Held out together by the probes.
        residue: Number of what the thought was worked out from and the action does not need: the problem's first number; -1
            where there is none.
    """

    text: str
    thought: str
    target: int
    group: str
    residue: int = -1


@cache
def requests(target: int, unseen: tuple[str, ...] = ()) -> tuple[Request, ...]:
    """Every way to ask for a target with these aspects of the words unseen ("expression", "phrasing")."""
    task, name = TARGETS[target]
    expression, phrasing = "expression" in unseen, "phrasing" in unseen
    if task == "calculating":
        return tuple(
            Request(text, thought(target, problem), target, problem.reasoning, problem.first)
            for problem in arithmetic_instructions.problems(int(name), unseen=expression)
            for text in arithmetic_instructions.questions(problem, unseen=phrasing)
        )
    if task == "bagging":
        item = next(item for item in bagging_catalog.CATALOG if item.name == name)
        texts = bagging_catalog.requests(item, unseen_wish=expression, unseen_phrasing=phrasing)
        frames = len(bagging_catalog.UNSEEN_FRAMES if phrasing else bagging_catalog.SEEN_FRAMES)
        return tuple(
            Request(text, thought(target), target, f"{name} {number // frames}") for number, text in enumerate(texts)
        )
    namings = UNSEEN_NAMINGS if phrasing else SEEN_NAMINGS
    return tuple(Request(naming.format(f"{name} cube"), thought(target), target, naming) for naming in namings)


def thought(target: int, problem: arithmetic_instructions.Problem | None = None) -> str:
    """The environment's own first thought up to the name; with a wrong target, one that has reasoned wrongly."""
    task, name = TARGETS[target]
    if task == "calculating":
        if problem is None:
            raise ValueError("problem: expected the problem behind a thought of calculating, got None")
        return f"{problem.first} {problem.operation} {problem.second} is {name}; reach the {name}"
    if task == "bagging":
        purpose = next(item.purpose for item in bagging_catalog.CATALOG if item.name == name)
        return f"{purpose}: reach the {name}"
    return f"reach the {name}"


def scene_text(things: Sequence[int]) -> str:
    """What lies on the table; things: targets from left to right."""
    return ", ".join(f"{TARGETS[thing][1]} {PLACES[place]}" for place, thing in enumerate(things)) + "."


def full_thought(request: Request, things: Sequence[int]) -> str:
    """The thought with the place of what is asked for."""
    return f"{request.thought} {PLACES[list(things).index(request.target)]}"


def exchanged_thought(request: Request, things: Sequence[int], target: int) -> str:
    """The full thought of a request as if it asked for another thing on the table."""
    if target not in things:
        raise ValueError(f"target: expected one of the things on the table {list(things)}, got {target}")
    problem = None
    if TARGETS[target][0] == "calculating":
        first, operation, second = request.group.split()[:3]
        problem = arithmetic_instructions.Problem(operation, int(first), int(second))
    return f"{thought(target, problem)} {PLACES[list(things).index(target)]}"


def words(text: str) -> list[str]:
    """Words, numbers and punctuation marks of a text, one by one."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


@cache
def vocabulary() -> dict[str, int]:
    """Word to token id, of all seen and unseen texts."""
    known = {word for place in PLACES for word in words(f"{place}, .")} | {name for _, name in TARGETS}
    for target, expression, phrasing in product(range(len(TARGETS)), (False, True), (False, True)):
        unseen = tuple(name for name, on in (("expression", expression), ("phrasing", phrasing)) if on)
        if set(unseen) <= set(ASPECTS_OF[TARGETS[target][0]]):
            for request in requests(target, unseen):
                known.update(words(request.text), words(request.thought))
    if len(known) > TINY_VOCABULARY_SIZE:
        raise RuntimeError(f"vocabulary: expected at most {TINY_VOCABULARY_SIZE} words, got {len(known)}")
    return {word: number for number, word in enumerate(sorted(known))}


class WordTokenizer:
    """What `SyVLAModel.predict_query_states` needs of a tokenizer: thoughts as text."""

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
        """Words with blanks between them; special tokens are left out."""
        texts = {number: word for word, number in vocabulary().items()}
        return [" ".join(texts[i] for i in row.tolist() if i in texts) for row in ids]


@cache
def frame_words() -> frozenset[str]:
    """Words of seen phrasings around what is asked for; a thought never depends on them."""
    frames = (*arithmetic_instructions.SEEN_FRAMES, *bagging_catalog.SEEN_FRAMES, *SEEN_NAMINGS)
    return frozenset(word for frame in frames for word in words(frame.format("")))


def prompt_ids(text: str, things: Sequence[int]) -> list[int]:
    """Scene and instruction as a turn of a person, and the start of the answer."""
    return [START, *(vocabulary()[word] for word in words(f"{scene_text(things)} {text}")), END, START]


def disturbed_prompt(text: str, things: Sequence[int], share: float, rng: np.random.Generator) -> list[int]:
    """As `prompt_ids`, in other words that mean nothing, so that a small model learns to pass over what it does not know.

    Words of the phrasing are dropped or replaced, each with probability `share`, and such words come in between with half of
    it. They are tokens that no text has, so no unseen phrasing is shown.
    """
    ids = [START, *(vocabulary()[word] for word in words(scene_text(things)))]
    for word in words(text):
        chance, between, strange = rng.random(), rng.random(), rng.integers(len(vocabulary()), TINY_VOCABULARY_SIZE, 2)
        if between < share / 2:
            ids.append(int(strange[0]))
        if word not in frame_words() or chance >= 2 * share:
            ids.append(vocabulary()[word])
        elif chance < share:
            ids.append(int(strange[1]))
    return [*ids, END, START]


def sequence_ids(prompt: Sequence[int], thought_text: str | None, queries: int) -> tuple[list[int], list[int]]:
    """Ids of prompt, thought and queries, and their labels: the thought with its end, -100 elsewhere."""
    prompt = list(prompt)
    answer = [] if thought_text is None else [*(vocabulary()[word] for word in words(thought_text)), END]
    ids = prompt + answer + [QUERY] * queries
    return ids, [-100] * len(prompt) + answer + [-100] * queries


@dataclass(frozen=True)
class TextBatch:
    """Right-padded ids, mask and labels, each int64 (B, L)."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor


def text_batch(sequences: Iterable[tuple[Sequence[int], Sequence[int]]]) -> TextBatch:
    """Batch of (ids, labels)."""
    pairs = list(sequences)
    length = max(len(ids) for ids, _ in pairs)
    ids = np.full((len(pairs), length), PAD)
    labels, mask = np.full_like(ids, -100), np.zeros_like(ids)
    for row, (own, label) in enumerate(pairs):
        ids[row, : len(own)], labels[row, : len(own)], mask[row, : len(own)] = own, label, 1
    return TextBatch(*(torch.from_numpy(part) for part in (ids, mask, labels)))
