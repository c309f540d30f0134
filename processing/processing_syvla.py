"""SyVLAProcessor: observations and chats to model inputs, predicted chunks back to physical units.

It holds the tokenizer, the VLM's image processor, the expert's image processor, and for every embodiment the statistics
that its states and actions were trained with, so that a checkpoint needs nothing else to act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.tokenization_utils_base import AddedToken

from .image_modes import to_rgb
from .normalization import MODES, normalize, offset_and_scale, unnormalize
from .prompt_format import (
    CHAT_TEMPLATE,
    QUERY_TOKEN,
    answer_labels,
    checked_messages,
    require_plain_text,
    robot_messages,
)

DEFAULT_VIEWS = ("center", "left_wrist", "right_wrist")
Image = Any  # PIL image or uint8 array (H, W, 3)


class SyVLAProcessor(ProcessorMixin):
    """Processor of SyVLA checkpoints.

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
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        expert_image_processor=None,
        chat_template=None,
        embodiments=None,
        views=DEFAULT_VIEWS,
        num_query_tokens=20,
        chunk_size=50,
        max_length=4096,
        query_token=QUERY_TOKEN,
        **kwargs,
    ):
        self.embodiments: dict[str, dict[str, Any]] = dict(embodiments or {})
        self.views = list(views)
        self.num_query_tokens = num_query_tokens
        self.chunk_size = chunk_size
        self.max_length = max_length
        self.query_token = query_token
        if tokenizer is not None:
            if tokenizer.convert_tokens_to_ids(query_token) in (None, tokenizer.unk_token_id):
                tokenizer.add_tokens([AddedToken(query_token, special=True, normalized=False)], special_tokens=True)
            self.query_token_id = tokenizer.convert_tokens_to_ids(query_token)
            self.image_token = "<|image_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(
            image_processor, tokenizer, expert_image_processor, chat_template=chat_template or CHAT_TEMPLATE
        )

    # ------------------------------------------------------------------ embodiments

    def set_embodiment(
        self,
        name: str,
        statistics: Mapping[str, Mapping[str, Any]],
        normalization: Mapping[str, str] | None = None,
        delta_actions: Sequence[int] | None = None,
        **extra: Any,
    ) -> None:
        """Register a robot, or replace its statistics (its id stays).

        Args:
            name: Name of the embodiment, as in the model's config.
            statistics: `{"state": {...}, "action": {...}}`, as `RobotDataset.statistics()` returns.
            normalization: Mode for "state" and "action", one of `MODES`; "mean_std" (the paper) when not given.
            delta_actions: For each action dimension the state dimension that it is relative to at the start of the chunk,
                -1 where it is absolute; the statistics are then those of the differences. None: all absolute.
            extra: JSON values to keep beside them, for example `state_names`, `action_names`, `control_hz`.
        """
        modes = {"state": "mean_std", "action": "mean_std", **(normalization or {})}
        entry: dict[str, Any] = {**extra, "normalization": modes, "statistics": {}}
        for kind in ("state", "action"):
            if modes[kind] not in MODES:
                raise ValueError(f"normalization.{kind}: expected one of {', '.join(MODES)}, got {modes[kind]!r}")
            if kind not in statistics or "mean" not in statistics[kind]:
                raise ValueError(
                    f"statistics.{kind}: missing for embodiment {name!r}; expected at least mean and std per dimension. "
                    "Compute them with RobotDataset(...).statistics()"
                )
            lists = {
                key: np.asarray(value, dtype=np.float64).ravel().tolist() for key, value in statistics[kind].items()
            }
            if modes[kind] != "identity":
                offset_and_scale(lists, modes[kind])  # raises now, not in the middle of training
            entry["statistics"][kind] = lists
            entry[f"{kind}_dim"] = len(lists["mean"])
        if delta_actions is not None and max(delta_actions, default=-1) >= 0:
            references = [int(reference) for reference in delta_actions]
            if (
                len(references) != entry["action_dim"]
                or not -1 <= min(references) <= max(references) < entry["state_dim"]
            ):
                raise ValueError(
                    f"delta_actions: expected {entry['action_dim']} state dimensions from -1 (absolute) to "
                    f"{entry['state_dim'] - 1} for embodiment {name!r}, got {references}"
                )
            entry["delta_actions"] = references
        known = self.embodiments.get(name)
        used = [e["id"] for e in self.embodiments.values()]
        entry["id"] = known["id"] if known else max(used, default=-1) + 1
        self.embodiments[name] = entry

    def _embodiment(self, name: str | None) -> tuple[str, dict[str, Any]]:
        if name is None and len(self.embodiments) == 1:
            name = next(iter(self.embodiments))
        if name not in self.embodiments:
            raise ValueError(
                f"embodiment: expected one of {sorted(self.embodiments) or 'none registered'}, got {name!r}; register it "
                "with processor.set_embodiment(name, statistics=...)"
            )
        return name, self.embodiments[name]

    def _normalized(self, values: Any, kind: str, name: str, base: np.ndarray | None = None) -> np.ndarray:
        entry = self.embodiments[name]
        array = np.asarray(values, dtype=np.float32)
        ndim = 1 if kind == "state" else 2
        if array.ndim != ndim or array.shape[-1] != entry[f"{kind}_dim"]:
            shape = f"({entry[f'{kind}_dim']},)" if kind == "state" else f"(T, {entry[f'{kind}_dim']})"
            raise ValueError(f"{kind}: expected shape {shape} for embodiment {name!r}, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{kind}: expected finite numbers for embodiment {name!r}, got NaN or infinity")
        if base is not None:
            array = array - base
        return normalize(array, entry["statistics"][kind], entry["normalization"][kind]).astype(np.float32)

    def _delta_base(self, entry: Mapping[str, Any], state: Any) -> np.ndarray | None:
        """What the embodiment's delta actions are relative to, (..., D_action); None where all are absolute."""
        references = entry.get("delta_actions")
        if references is None:
            return None
        state = np.asarray(state, dtype=np.float32)
        return np.where(np.asarray(references) >= 0, state[..., np.maximum(references, 0)], np.float32(0))

    def decode_actions(self, actions: Any, embodiment: str | None = None, state: Any = None) -> np.ndarray:
        """Model output to physical units.

        Args:
            actions: Normalised chunk, (T, D) or (B, T, D), possibly zero-padded in the last dimension.
            embodiment: Robot whose units to restore; may be left out when there is only one.
            state: Raw state that the chunk was predicted from, (D_state,) or (B, D_state); needed where the embodiment has
                delta actions, ignored elsewhere.

        Returns:
            float32 array with the embodiment's own number of dimensions.
        """
        name, entry = self._embodiment(embodiment)
        if entry.get("delta_actions") is not None and state is None:
            raise ValueError(f"state: the actions of embodiment {name!r} are relative to it; pass the observed state")
        if isinstance(actions, torch.Tensor):
            actions = actions.detach().float().cpu().numpy()
        actions = np.asarray(actions, dtype=np.float32)
        if actions.shape[-1] < entry["action_dim"]:
            raise ValueError(f"actions: expected at least {entry['action_dim']} dimensions, got shape {actions.shape}")
        own = actions[..., : entry["action_dim"]]
        raw = unnormalize(own, entry["statistics"]["action"], entry["normalization"]["action"]).astype(np.float32)
        base = self._delta_base(entry, state)
        return raw if base is None else raw + base[..., None, :]

    # ------------------------------------------------------------------ calls

    def __call__(
        self,
        images=None,
        text=None,
        state=None,
        actions=None,
        embodiment=None,
        thought=None,
        action_is_pad=None,
        padding_side=None,
        return_tensors="pt",
        **kwargs,
    ) -> BatchFeature:
        """Inputs for the model from raw observations, or from rendered chat text.

        With `state` (or `embodiment`) the input is robot data: `text` is the instruction, `images` a dict of views or a
        list in the order of `views`. Every argument may be a list over a batch. With `actions` or `thought`, query tokens
        are appended; with `actions`, labels and action targets are made as well.

        Without them, `text` is rendered chat text with one image pad per image, as `apply_chat_template` produces.

        Args:
            images: Dict view -> image, or list of images; images are PIL or uint8 (H, W, 3).
            text: Instruction(s) or rendered chat text(s).
            state: Raw state (D_state,) in physical units.
            actions: Raw actions (T, D_action) in physical units, T at most `chunk_size`.
            embodiment: Registered name; may be left out when there is only one.
            thought: Chain of thought, or None.
            action_is_pad: bool (T,), True for steps beyond the end of the episode.
            padding_side: "left" or "right"; right for training, left otherwise.

        Returns:
            BatchFeature with `input_ids, attention_mask, mm_token_type_ids` (B, L), `pixel_values, image_grid_thw`, and for
            robot data `expert_pixel_values` (B, V, 3, h, w), `expert_view_mask` (B, V), `state`, `embodiment_ids`, and
            for training `labels, actions, action_mask`.
        """
        kwargs.pop("padding", None)
        if kwargs.pop("videos", None) is not None:
            raise ValueError("videos: SyVLA reads images only; pass single frames as images")
        if state is None and embodiment is None and actions is None:
            return self._plain(images, text, padding_side or "left", return_tensors, **kwargs)
        batched = isinstance(text, (list, tuple))
        count = len(text) if batched else 1
        columns = {"state": state, "actions": actions, "thought": thought, "action_is_pad": action_is_pad}
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
        return self.collate(items, padding_side=padding_side or ("right" if actions is not None else "left"))

    def collate(
        self, items: Sequence[Mapping[str, Any]], padding_side: str = "right", length_bucket: int = 1
    ) -> BatchFeature:
        """One batch out of robot items (see `RobotDataset`) and multi-modal items.

        A multi-modal item is `{"messages": chat, "images": [image, ...]}`; loss falls on its assistant answers only.
        Sequences are padded to the longest, rounded up to a multiple of `length_bucket` tokens.
        """
        rendered = [self._render(item) for item in items]
        images = [image for _, views in rendered for image in views.values()]
        vision = self._vlm_images(images)
        grids = iter(vision["image_grid_thw"].tolist() if vision else [])
        sequences = []
        for i, (item, (text, views)) in enumerate(zip(items, rendered, strict=True)):
            to_come = 0 if "messages" in item or self.query_token in text else self.num_query_tokens
            sequences.append(self._tokenize(text, [next(grids) for _ in views], i, to_come))
        labels = None
        if any(item.get("actions") is not None or "messages" in item for item in items):
            labels = [answer_labels(ids, self.tokenizer, self.query_token_id) for ids in sequences]
        data: dict[str, Any] = {**self._pad(sequences, labels, padding_side, length_bucket), **vision}
        if any("messages" not in item for item in items):
            data.update(self._expert_inputs(items, [views for _, views in rendered]))
        return BatchFeature(data=data)

    def count_tokens(self, item: Mapping[str, Any]) -> int:
        """Tokens of an item as `collate` takes it, without processing its images; they may be more than `max_length`.

        Raises:
            ValueError: `collate` would refuse the item for something else.
        """
        text, views = self._render(item)
        patches = [self.image_processor.get_number_of_image_patches(*image.shape[:2], {}) for image in views.values()]
        text_only = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(text_only) + sum(count // self.image_processor.merge_size**2 - 1 for count in patches)

    def expert_inputs(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """What the action expert and the value model read of robot items: low-resolution views, states, embodiment ids."""
        observations = [{**item, "actions": None} for item in items]
        return self._expert_inputs(observations, [self._views(item.get("images")) for item in items])

    def normalize_actions(self, actions: Any, embodiment: str | None = None, state: Any = None) -> np.ndarray:
        """Physical actions (T, D) as the model sees them, float32 (T, D): the inverse of `decode_actions`."""
        name, entry = self._embodiment(embodiment)
        return self._normalized(actions, "action", name, self._delta_base(entry, state))

    # ------------------------------------------------------------------ parts

    def _plain(self, images, text, padding_side: str, return_tensors, **kwargs) -> BatchFeature:
        if isinstance(images, Mapping):
            raise ValueError(
                "images: a dict of views is a robot's observation; pass its state= (and embodiment=) as well"
            )
        texts = [text] if isinstance(text, str) else list(text or [])
        flat: list[Image] = []
        for entry in images if isinstance(images, (list, tuple)) else ([] if images is None else [images]):
            flat.extend(entry if isinstance(entry, (list, tuple)) else [entry])
        vision = self._vlm_images([_checked_image(image, f"images[{i}]") for i, image in enumerate(flat)])
        grids = vision["image_grid_thw"].tolist() if vision else []
        needed = [t.count(self.image_token) for t in texts]
        if sum(needed) != len(grids):
            raise ValueError(f"images: the text holds {sum(needed)} image placeholders, got {len(grids)} images")
        sequences = []
        for i, (prompt, count) in enumerate(zip(texts, needed, strict=True)):
            sequences.append(self._tokenize(prompt, grids[:count], i))
            grids = grids[count:]
        data = {**self._pad(sequences, None, padding_side), **vision}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _render(self, item: Mapping[str, Any]) -> tuple[str, dict[str, Image]]:
        """Chat text of an item and its images in the order of their placeholders."""
        if "messages" in item:
            images = {str(i): _checked_image(image, f"images[{i}]") for i, image in enumerate(item.get("images") or [])}
            messages = checked_messages(item["messages"], self.tokenizer)
            text = self.apply_chat_template(messages, tokenize=False)
            if text.count(self.image_token) != len(images):
                raise ValueError(
                    f"messages: hold {text.count(self.image_token)} image entries, got {len(images)} images; they must match"
                )
            return text, images
        instruction, thought = item["text"], item.get("thought")
        require_plain_text("text", instruction, self.tokenizer)
        views = self._views(item.get("images"))
        messages = robot_messages(list(views), instruction)
        if thought is not None:
            require_plain_text("thought", thought, self.tokenizer)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": thought.strip()}]})
        text = self.apply_chat_template(messages, tokenize=False, add_generation_prompt=thought is None)
        if thought is not None:
            text = text.rstrip("\n")  # generation ends at the end token, so training does as well
        if thought is not None or item.get("actions") is not None:
            text += self.query_token * self.num_query_tokens
        return text, views

    def _views(self, images: Any) -> dict[str, Image]:
        """Present views in the model's order."""
        if images is None:
            raise ValueError(f"images: missing; expected a dict with views out of {self.views}")
        if not isinstance(images, Mapping):
            images = images if isinstance(images, (list, tuple)) else [images]
            if len(images) > len(self.views):
                raise ValueError(f"images: expected at most {len(self.views)} views {self.views}, got {len(images)}")
            images = dict(zip(self.views, images, strict=False))
        unknown = sorted(set(images) - set(self.views))
        if unknown:
            raise ValueError(
                f"images: unknown views {unknown}; this checkpoint has {self.views}. Map cameras to views."
            )
        present = {v: _checked_image(images[v], f"images.{v}") for v in self.views if images.get(v) is not None}
        if not present:
            raise ValueError(f"images: expected at least one of the views {self.views}, got none")
        return present

    def _vlm_images(self, images: list[Image]) -> dict[str, torch.Tensor]:
        if not images:
            return {}
        features = self.image_processor(images=images, return_tensors="pt", input_data_format="channels_last")
        return {"pixel_values": features["pixel_values"], "image_grid_thw": features["image_grid_thw"]}

    def _tokenize(self, text: str, grids: list[list[int]], index: int, queries_to_come: int = 0) -> list[int]:
        """Ids of a text; the model appends `queries_to_come` tokens, for which there must be room."""
        merge = self.image_processor.merge_size**2 if grids else 1
        parts = text.split(self.image_token)
        for part, (t, h, w) in zip(range(len(parts) - 1), grids, strict=True):
            parts[part] += self.image_token * (t * h * w // merge)
        ids = self.tokenizer("".join(parts), add_special_tokens=False)["input_ids"]
        if len(ids) + queries_to_come > self.max_length:
            room = f" with the {queries_to_come} query tokens to come" if queries_to_come else ""
            raise ValueError(
                f"sample {index}: {len(ids)} tokens{room} exceed max_length={self.max_length}; shorten the instruction or "
                "thought, use smaller images, or raise processor.max_length"
            )
        return ids

    def _pad(
        self, sequences: list[list[int]], labels: list[list[int]] | None, side: str, multiple: int = 1
    ) -> dict[str, torch.Tensor]:
        if side not in ("left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {side!r}")
        width = -(-max(map(len, sequences)) // multiple) * multiple
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
        for row, item in enumerate(items):
            if "messages" in item:
                continue
            name, entry = self._embodiment(item.get("embodiment"))
            out["embodiment_ids"][row] = entry["id"]
            if item.get("state") is None:
                raise ValueError(f"state: missing for embodiment {name!r}; expected shape ({entry['state_dim']},)")
            out["state"][row, : entry["state_dim"]] = torch.from_numpy(self._normalized(item["state"], "state", name))
            for view, image in views[row].items():
                flat.append(image)
                slots.append((row, self.views.index(view)))
            if item.get("actions") is not None:
                self._add_actions(out, row, item, name)
        pixels = self.expert_image_processor(images=flat, return_tensors="pt", input_data_format="channels_last")
        pixels = pixels["pixel_values"]  # (images, 3, h, w)
        out["expert_pixel_values"] = pixels.new_zeros(size, len(self.views), *pixels.shape[1:])
        rows, columns = map(list, zip(*slots, strict=True))
        out["expert_pixel_values"][rows, columns] = pixels
        out["expert_view_mask"][rows, columns] = True
        return out

    def _add_actions(self, out: dict[str, torch.Tensor], row: int, item: Mapping[str, Any], name: str) -> None:
        base = self._delta_base(self.embodiments[name], item["state"])
        chunk = self._normalized(item["actions"], "action", name, base)
        steps, dims = chunk.shape
        if not 0 < steps <= self.chunk_size:
            raise ValueError(f"actions: expected 1 to chunk_size={self.chunk_size} steps, got {steps}")
        real = np.ones(steps, dtype=bool)
        if item.get("action_is_pad") is not None:
            real = ~np.asarray(item["action_is_pad"], dtype=bool)
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
    def model_input_names(self):
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"]


def _checked_image(image: Image, name: str) -> np.ndarray:
    """uint8 (H, W, 3); anything else is an error, never guessed."""
    if hasattr(image, "convert"):  # PIL
        if 0 in image.size:
            raise ValueError(f"{name}: expected an image with pixels, got one of size {image.size}")
        return np.asarray(to_rgb(image))
    array = image.numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(
            f"{name}: expected a PIL image or an array (H, W, 3) uint8, got {array.shape} {array.dtype}; move channels last "
            "and scale to 0..255"
        )
    return array
