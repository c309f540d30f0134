"""SyVLAProcessor: observations and chats to model inputs, predicted chunks back to physical units.

It holds the tokenizer, the VLM's image processor, the expert's image processor, and for every embodiment the statistics
that its states and actions were trained with, so that a checkpoint needs nothing else to act.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.tokenization_utils_base import AddedToken

from .call_keywords import CallKeywords, SyVLAProcessorKwargs, require_known_at_loading
from .chat_inputs import ChatInputs
from .image_inputs import Image, chat_images, robot_views
from .normalization import EmbodimentNormalization
from .prompt_format import CHAT_TEMPLATE, QUERY_TOKEN, answer_labels, item_messages

DEFAULT_VIEWS = ("center", "left_wrist", "right_wrist")

# Keys of an item that `collate` reads. Datasets put their own beside them, such as `episode_index`.
ITEM_KEYS = frozenset(
    ("messages", "images", "text", "thought", "advantage", "embodiment", "state", "actions", "action_is_pad")
)
_NOT_MISSPELLED: set[str] = set()  # keys found to be unlike those, since the comparison takes its time


class SyVLAProcessor(EmbodimentNormalization, ChatInputs):
    """Processor of SyVLA checkpoints.

    Batches are padded on the left unless the tokenizer was given a `padding_side`, since generation goes on at the right.

    Args:
        image_processor: The VLM's image processor (Qwen2-VL family).
        tokenizer: The VLM's tokenizer; the query token is added when it lacks it.
        expert_image_processor: Image processor of the action expert's low-resolution views.
        chat_template: Jinja template; the default renders what Qwen2.5-VL's own does.
        embodiments: Name -> `{"id", "state_dim", "action_dim", "statistics", "normalization"}`; see `set_embodiment`.
        views: View names in the model's order.
        num_query_tokens: N, as in the model's config.
        chunk_size: Steps of an action chunk, as in the model's config.
        max_length: Longest sequence in tokens; a longer one is an error, never cut.
        query_token: Text of the query placeholder.
        advantage_conditioned: Whether robot prompts say how good the actions are, as in the model's config; see `advantage`.
    """

    valid_processor_kwargs = SyVLAProcessorKwargs

    expert_image_processor: Any  # set by `ProcessorMixin`, as the other parts are

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        expert_image_processor: Any = None,
        chat_template: str | dict[str, str] | None = None,
        embodiments: Mapping[str, dict[str, Any]] | None = None,
        views: Sequence[str] = DEFAULT_VIEWS,
        num_query_tokens: int = 20,
        chunk_size: int = 50,
        max_length: int = 4096,
        query_token: str = QUERY_TOKEN,
        advantage_conditioned: bool = False,
    ) -> None:
        self.embodiments: dict[str, dict[str, Any]] = dict(embodiments or {})
        self.views = list(views)
        self.num_query_tokens = num_query_tokens
        self.chunk_size = chunk_size
        self.max_length = max_length
        self.query_token = query_token
        self.advantage_conditioned = advantage_conditioned
        if tokenizer is not None:
            if tokenizer.convert_tokens_to_ids(query_token) in (None, tokenizer.unk_token_id):
                tokenizer.add_tokens([AddedToken(query_token, special=True, normalized=False)], special_tokens=True)
            self.query_token_id = tokenizer.convert_tokens_to_ids(query_token)
            self.image_token = "<|image_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            if tokenizer.init_kwargs.get("padding_side") is None:
                tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        super().__init__(
            image_processor, tokenizer, expert_image_processor, chat_template=chat_template or CHAT_TEMPLATE
        )

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """transformers' own, which drops keywords that nothing reads; they raise TypeError here."""
        require_known_at_loading(cls, args, kwargs)
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    # ------------------------------------------------------------------ calls

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        state: Any = None,
        actions: Any = None,
        embodiment: str | Sequence[str] | None = None,
        thought: str | Sequence[str | None] | None = None,
        action_is_pad: Any = None,
        advantage: str | Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs for the model from raw observations, or from rendered chat text.

        With `state` (or `embodiment`) the input is robot data: `text` is the instruction, `images` a dict of views or a
        list in the order of `views`. Every argument may be a list over a batch. With `actions` or `thought`, query tokens
        are appended; with `actions`, labels and action targets are made as well.

        Without them, `text` is rendered chat text with one image pad per image, as `apply_chat_template` produces, and the
        call is that of `Qwen2_5_VLProcessor`: the same keywords, the same tensors, lists without `return_tensors`.

        Args:
            images: Dict view -> image, or list of images; images of a robot are PIL or uint8 (H, W, 3), those of a chat may
                also be (3, H, W), paths, addresses and base64.
            text: Instruction(s) or rendered chat text(s).
            state: Raw state (D_state,) in physical units.
            actions: Raw actions (T, D_action) in physical units, T at most `chunk_size`.
            embodiment: Registered name; may be left out when there is only one.
            thought: Chain of thought, or None.
            action_is_pad: bool (T,), True for steps beyond the end of the episode.
            advantage: For an advantage-conditioned checkpoint, what the prompt says of the actions: "positive" (None: this
                one), "negative", or "none" for a prompt without the indicator; for other checkpoints nothing may be said.
            kwargs: Keywords of the tokenizer and of the VLM's image processor, flat or in `text_kwargs`, `images_kwargs` and
                `common_kwargs`. With robot data, `return_tensors` is "pt" (default) or "np"; `padding` is True (default),
                False or "max_length"; `padding_side` is right for training and left otherwise; nothing is ever cut, so
                `truncation` raises where it would; image keywords are those of sizes, and act on the VLM's images alone.

        Returns:
            BatchFeature with `input_ids, attention_mask, mm_token_type_ids` (B, L), `pixel_values, image_grid_thw`, and for
            robot data `expert_pixel_values` (B, V, 3, h, w), `expert_view_mask` (B, V), `state`, `embodiment_ids`, and
            for training `labels, actions, action_mask`.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If an input has another form than expected, or a keyword is passed twice or has no effect.
        """
        keywords = CallKeywords(self, kwargs)
        columns = {"state": state, "actions": actions, "thought": thought, "action_is_pad": action_is_pad}
        columns["advantage"] = advantage
        if state is None and embodiment is None and actions is None:
            for name, value in columns.items():
                if value is not None:
                    raise ValueError(f"{name}: is a robot's; pass its state= (and embodiment=) as well")
            return self._chat_inputs(images, text, keywords)
        keywords.require_robot_keywords()
        batched = isinstance(text, (list, tuple))
        count = len(text) if batched else 1
        if batched:
            for name, value in {**columns, "images": images}.items():
                if value is not None and (isinstance(value, (str, Mapping)) or len(value) != count):
                    got = type(value).__name__ if isinstance(value, (str, Mapping)) else f"{len(value)} entries"
                    raise ValueError(f"{name}: expected one entry for each of the {count} texts, got {got}")
            if isinstance(embodiment, (list, tuple)) and len(embodiment) != count:
                raise ValueError(f"embodiment: expected one name or {count}, got {len(embodiment)}")
        items = []
        for i in range(count):
            item = {key: (value[i] if batched and value is not None else value) for key, value in columns.items()}
            item["embodiment"] = embodiment[i] if isinstance(embodiment, (list, tuple)) else embodiment
            item["text"] = text[i] if batched else text
            item["images"] = images[i] if batched and images is not None else images
            items.append(item)
        options = {"padding_side": "right" if actions is not None else "left", **keywords.given_text()}
        batch = self._collate(items, options.pop("padding_side"), image_keywords=keywords.given_images(), **options)
        return BatchFeature(batch, tensor_type=keywords.text.get("return_tensors") or "pt")

    def collate(
        self, items: Sequence[Mapping[str, Any]], padding_side: str = "right", length_bucket: int = 1
    ) -> BatchFeature:
        """One batch out of robot items (see `RobotDataset`) and multi-modal items.

        A multi-modal item is `{"messages": chat, "images": [image, ...]}`; loss falls on its assistant answers only.
        Sequences are padded to the longest, rounded up to a multiple of `length_bucket` tokens.
        """
        return BatchFeature(self._collate(items, padding_side, pad_to_multiple_of=length_bucket))

    def _collate(
        self,
        items: Sequence[Mapping[str, Any]],
        padding_side: str,
        *,
        padding: Any = True,
        truncation: Any = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        image_keywords: Mapping[str, Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        texts, images = self._render(items)
        vision = self._vlm_images([image for views in images for image in views.values()], image_keywords or {})
        grids = iter(vision["image_grid_thw"].tolist() if vision else [])
        limit = self.max_length if max_length is None else min(max_length, self.max_length)
        sequences = []
        for i, (item, text, views) in enumerate(zip(items, texts, images, strict=True)):
            to_come = 0 if "messages" in item or self.query_token in text else self.num_query_tokens
            sequences.append(self._tokenize(text, [next(grids) for _ in views], i, to_come, limit, bool(truncation)))
        labels = None
        if any(item.get("actions") is not None or "messages" in item for item in items):
            labels = [answer_labels(ids, self.tokenizer, self.query_token_id) for ids in sequences]
        width = padded_width([len(ids) for ids in sequences], padding, limit, pad_to_multiple_of)
        data: dict[str, torch.Tensor] = {**self._pad(sequences, labels, padding_side, width), **vision}
        if any("messages" not in item for item in items):
            data.update(self._expert_inputs(items, images))
        return data

    def count_tokens(self, item: Mapping[str, Any]) -> int:
        """Tokens of an item as `collate` takes it, without processing its images; they may be more than `max_length`.

        Raises:
            ValueError: `collate` would refuse the item for something else.
        """
        [text], [views] = self._render([item])
        patches = [self.image_processor.get_number_of_image_patches(*image.shape[:2], {}) for image in views.values()]
        text_only = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens: int = len(text_only) + sum(count // self.image_processor.merge_size**2 - 1 for count in patches)
        return tokens

    def expert_inputs(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """What the action expert and the value model read of robot items: low-resolution views, states, embodiment ids."""
        observations = [{**item, "actions": None} for item in items]
        return self._expert_inputs(observations, [robot_views(item.get("images"), self.views) for item in items])

    # ------------------------------------------------------------------ parts

    def _render(self, items: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Image]]]:
        """Chat text of every item, and its images in the order of their placeholders."""
        images, chats = [], []
        for item in items:
            _require_known_keys(item)
            given = item.get("images")
            images.append(chat_images(given) if "messages" in item else robot_views(given, self.views))
            chats.append(item_messages(item, list(images[-1]), self.tokenizer, self.advantage_conditioned))
        texts = [
            self._chat_text(chat, len(views)) if "messages" in item else self._robot_text(chat, item)
            for item, chat, views in zip(items, chats, images, strict=True)
        ]
        return texts, images

    def _chat_text(self, messages: list[dict[str, Any]], num_images: int) -> str:
        text: str = self.apply_chat_template(messages, tokenize=False)
        if text.count(self.image_token) != num_images:
            raise ValueError(
                f"messages: hold {text.count(self.image_token)} image entries, got {num_images} images; they must match"
            )
        return text

    def _robot_text(self, messages: list[dict[str, Any]], item: Mapping[str, Any]) -> str:
        has_thought = item.get("thought") is not None
        # Past our own `apply_chat_template`, whose checks are for chats from outside; these messages are built here.
        text: str = ProcessorMixin.apply_chat_template(
            self, messages, tokenize=False, add_generation_prompt=not has_thought
        )
        if has_thought:
            text = text.rstrip("\n")  # generation ends at the end token, so training does as well
        if has_thought or item.get("actions") is not None:
            text += self.query_token * self.num_query_tokens
        return text

    def _vlm_images(self, images: list[Image], keywords: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if not images:
            return {}
        features = self.image_processor(
            images=images, return_tensors="pt", input_data_format="channels_last", **keywords
        )
        return {"pixel_values": features["pixel_values"], "image_grid_thw": features["image_grid_thw"]}

    def _tokenize(
        self, text: str, grids: list[list[int]], index: int, queries_to_come: int, limit: int, truncation: bool
    ) -> list[int]:
        """Ids of a text; the model appends `queries_to_come` tokens, for which there must be room within `limit`."""
        merge = self.image_processor.merge_size**2 if grids else 1
        parts = text.split(self.image_token)
        for part, (t, h, w) in zip(range(len(parts) - 1), grids, strict=True):
            parts[part] += self.image_token * (t * h * w // merge)
        ids: list[int] = self.tokenizer("".join(parts), add_special_tokens=False)["input_ids"]
        if len(ids) + queries_to_come > limit:
            room = f" with the {queries_to_come} query tokens to come" if queries_to_come else ""
            cut = "truncation would cut what the model acts on; " if truncation else ""
            raise ValueError(
                f"sample {index}: {len(ids)} tokens{room} exceed max_length={limit}; {cut}shorten the instruction or "
                "thought, use smaller images, or raise processor.max_length"
            )
        return ids

    def _pad(
        self, sequences: list[list[int]], labels: list[list[int]] | None, side: str, width: int
    ) -> dict[str, torch.Tensor]:
        if side not in ("left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {side!r}")
        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        out = {
            "input_ids": torch.full((len(sequences), width), pad_id, dtype=torch.long),
            "attention_mask": torch.zeros((len(sequences), width), dtype=torch.long),
        }
        if labels is not None:
            out["labels"] = torch.full((len(sequences), width), -100, dtype=torch.long)
        for row, ids in enumerate(sequences):
            where = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
            out["input_ids"][row, where] = torch.tensor(ids)
            out["attention_mask"][row, where] = 1
            if labels is not None:
                out["labels"][row, where] = torch.tensor(labels[row])
        out["mm_token_type_ids"] = (out["input_ids"] == self.image_token_id).int()
        return out

    def _expert_inputs(
        self, items: Sequence[Mapping[str, Any]], views: list[dict[str, Image]]
    ) -> dict[str, torch.Tensor]:
        """Low-resolution views, states, embodiment ids and, for training, action targets with their mask."""
        size = len(items)
        max_state = max(e["state_dim"] for e in self.embodiments.values()) if self.embodiments else 0
        max_action = max(e["action_dim"] for e in self.embodiments.values()) if self.embodiments else 0
        flat, slots = [], []
        out: dict[str, torch.Tensor] = {
            "expert_view_mask": torch.zeros(size, len(self.views), dtype=torch.bool),
            "state": torch.zeros(size, max_state),
            "embodiment_ids": torch.full((size,), -1, dtype=torch.long),
        }
        if any(item.get("actions") is not None for item in items):
            out["actions"] = torch.zeros(size, self.chunk_size, max_action)
            out["action_mask"] = torch.zeros(size, self.chunk_size, max_action, dtype=torch.bool)
        robots = [row for row, item in enumerate(items) if "messages" not in item]
        samples = self._normalized_samples([items[row] for row in robots])
        for row, (entry, state, chunk) in zip(robots, samples, strict=True):
            out["embodiment_ids"][row] = entry["id"]
            out["state"][row, : len(state)] = torch.from_numpy(state)
            for view, image in views[row].items():
                flat.append(image)
                slots.append((row, self.views.index(view)))
            if chunk is not None:
                self._add_actions(out, row, chunk, items[row].get("action_is_pad"))
        pixels = self.expert_image_processor(images=flat, return_tensors="pt", input_data_format="channels_last")
        pixels = pixels["pixel_values"]  # (images, 3, h, w)
        out["expert_pixel_values"] = pixels.new_zeros(size, len(self.views), *pixels.shape[1:])
        rows, columns = map(list, zip(*slots, strict=True))
        out["expert_pixel_values"][rows, columns] = pixels
        out["expert_view_mask"][rows, columns] = True
        return out

    def _add_actions(self, out: dict[str, torch.Tensor], row: int, chunk: np.ndarray, is_pad: Any) -> None:
        steps, dims = chunk.shape
        if not 0 < steps <= self.chunk_size:
            raise ValueError(f"actions: expected 1 to chunk_size={self.chunk_size} steps, got {steps}")
        real = np.ones(steps, dtype=bool)
        if is_pad is not None:
            real = ~np.asarray(is_pad, dtype=bool)
            if real.shape != (steps,):
                raise ValueError(f"action_is_pad: expected shape ({steps},), got {real.shape}")
        out["actions"][row, :steps, :dims] = torch.from_numpy(chunk)
        out["action_mask"][row, :steps, :dims] = torch.from_numpy(real)[:, None]

    # ------------------------------------------------------------------ agreement with a model

    def disagreements(self, config: Any) -> list[str]:
        """What in this processor does not fit a model's config; empty when everything does."""
        problems = []
        for name in ("num_query_tokens", "chunk_size", "query_token_id"):
            mine, theirs = getattr(self, name), getattr(config, name)
            if mine != theirs:
                problems.append(f"{name}: the processor has {mine}, the model {theirs}; set both to the same value")
        if self.advantage_conditioned != (theirs := getattr(config, "advantage_conditioned", False)):
            problems.append(
                f"advantage_conditioned: the processor has {self.advantage_conditioned}, the model {theirs}; the prompt is the "
                "one that the model was trained with, so take both from one checkpoint"
            )
        if list(self.views) != list(config.views):
            problems.append(f"views: the processor has {list(self.views)}, the model {list(config.views)}")
        for name, entry in self.embodiments.items():
            theirs = config.embodiments.get(name)
            mine = {key: entry[key] for key in ("id", "state_dim", "action_dim")}
            if theirs is None:
                problems.append(f"embodiments.{name}: unknown to the model; call model.add_embodiment({name!r}, ...)")
            elif mine != {key: theirs[key] for key in mine}:
                problems.append(f"embodiments.{name}: the processor has {mine}, the model {theirs}; they must be equal")
        return problems

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"]


def padded_width(lengths: Sequence[int], padding: Any, limit: int, multiple: int | None) -> int:
    """Tokens to which sequences of these lengths are padded.

    Args:
        lengths: Tokens of every sequence.
        padding: True or "longest"; "max_length" for `limit`; False or "do_not_pad" where all lengths are equal.
        limit: The longest a sequence may be.
        multiple: The width is rounded up to a multiple of this.

    Raises:
        ValueError: If the padding is another, or there is none although the lengths differ.
    """
    padding = getattr(padding, "value", padding)  # PaddingStrategy
    if padding not in (True, False, None, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding: expected True, False, 'longest', 'max_length' or 'do_not_pad', got {padding!r}")
    if padding in (False, "do_not_pad"):
        if len(set(lengths)) > 1:
            raise ValueError(f"padding: sequences of {sorted(set(lengths))} tokens make no batch; pass padding=True")
        return lengths[0]
    width = limit if padding == "max_length" else max(lengths)
    return -(-width // (multiple or 1)) * (multiple or 1)


def _require_known_keys(item: Mapping[str, Any]) -> None:
    """Raise TypeError for a key that is nearly one of `ITEM_KEYS`; keys unlike all of them pass."""
    for name in item:
        if name not in ITEM_KEYS and name not in _NOT_MISSPELLED:
            near = difflib.get_close_matches(str(name), ITEM_KEYS, n=1, cutoff=0.8)
            if near:
                raise TypeError(f"item: unexpected key {name!r}; did you mean {near[0]!r}?")
            _NOT_MISSPELLED.add(name)
