"""The pretrained parts that a SyVLA checkpoint is made of: where they lie, which are supported, how they name tensors."""

from __future__ import annotations

import copy
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .tensor_files import MemoryTensor, TensorSource, equal, listed, nbytes, read_checkpoint

# Families of vision-language models that the tests assemble, run (losses, actions, thoughts on the cache) and export.
# Others with the same interface (multi-dimensional rotary positions from `get_rope_index`, `model.language_model`) exist,
# but differ in details such as thought format, merged expert weights or cache.
VLM_FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_5")
# Older transformers forget the state of its linear-attention layers when several tokens follow a cache, as the queries
# follow a thought.
_OLDEST_TRANSFORMERS = {"qwen3_5": (5, 23)}
# These are published with the names that transformers gave their modules before version 4.52.
_OLD_LAYOUT_FAMILIES = ("qwen2_5_vl", "qwen2_vl")

# Left over in old checkpoints; models compute them.
_COMPUTED = re.compile(r"(^|\.)(position_ids|inv_freq)$")
_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt"]


@dataclass
class Part:
    """A pretrained model as a source of tensors.

    Attributes:
        name: The argument that gave it, "vlm" or "vision_tower".
        origin: Hub id, folder name or class name; never a path of this machine.
        revision: Commit on the Hub, if it came from there.
        config: Its config, a copy.
        tensors: Its tensors by the names they have there.
        folder: Where it lies, None for a model in memory.
        model: The model, if it is in memory; None if it is a folder or Hub id.
    """

    name: str
    origin: str
    revision: str | None
    config: PreTrainedConfig
    tensors: dict[str, TensorSource]
    folder: Path | None = None
    model: PreTrainedModel | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point dtype of most of its bytes."""
        sizes: dict[torch.dtype, int] = {}
        for source in self.tensors.values():
            if source.dtype.is_floating_point:
                sizes[source.dtype] = sizes.get(source.dtype, 0) + nbytes(source)
        return max(sizes, key=lambda dtype: sizes[dtype])


def open_part(name: str, source: str | Path | PreTrainedModel, revision: str | None = None) -> Part:
    """Find a part and read its config and tensor headers.

    Raises:
        ValueError: If it is neither a folder, a Hub id nor a model, is quantized, or holds no readable safetensors.
    """
    if isinstance(source, PreTrainedModel):
        config = copy.deepcopy(source.config)
        tensors: dict[str, TensorSource] = {key: MemoryTensor(value) for key, value in source.state_dict().items()}
        part = Part(name, type(source).__name__, None, config, tensors, model=source)
    else:
        folder, commit = find_folder(name, source, revision)
        origin = folder.name if commit is None else str(source)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{name}: {folder}: no config.json; expected the folder of a transformers checkpoint")
        config = AutoConfig.from_pretrained(folder)
        part = Part(name, origin, commit, config, read_checkpoint(folder), folder)
    if getattr(part.config, "quantization_config", None) is not None:
        raise ValueError(f"{name}: {part.origin} is quantized; take the unquantized checkpoint and quantize on loading")
    return part


def find_folder(name: str, source: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """Local folder of a checkpoint, downloaded if need be (safetensors and text only), and its commit on the Hub."""
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{name}: a revision ({revision!r}) belongs to a Hub id, but {source} is a local folder")
        return Path(source).resolve(), None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise ValueError(f"{name}: {source}: no such folder, and not a Hub id like 'Qwen/Qwen2.5-VL-3B-Instruct'")
    folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=_FILES))
    return folder, folder.name


# ---------------------------------------------------------------------- names of tensors


def require_supported_vlm(part: Part) -> None:
    family = part.config.model_type
    if family not in VLM_FAMILIES:
        raise ValueError(
            f"{part.name}: {part.origin} is of family {family!r}; SyVLA is tested with {', '.join(VLM_FAMILIES)}"
        )
    oldest = _OLDEST_TRANSFORMERS.get(family, (0, 0))
    if tuple(map(int, transformers.__version__.split(".")[:2])) < oldest:
        raise ValueError(
            f"{part.name}: {part.origin} is of family {family!r}, which needs transformers {oldest[0]}.{oldest[1]} or newer; "
            f"installed is {transformers.__version__}"
        )


def old_layout(key: str) -> str:
    """Name that a tensor of the VLM had before transformers 4.52, in which Qwen2-VL and Qwen2.5-VL are published."""
    for now, before in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if key.startswith(now):
            return before + key.removeprefix(now)
    return key


def published_layout(family: str, key: str) -> str:
    """Name of a VLM tensor in the family's published checkpoints, which `save_pretrained` also writes."""
    return old_layout(key) if family in _OLD_LAYOUT_FAMILIES else key


def vlm_names(key: str) -> list[str]:
    """Names under which a checkpoint may hold the VLM's tensor `key`."""
    return [key, old_layout(key)]


def vision_tower_names(key: str) -> list[str]:
    """Names under which a checkpoint, vision-only or two-tower, may hold the image encoder's tensor `key`."""
    return [key, f"vision_model.{key}", key.removeprefix("vision_model.")]


def match(
    part: Part,
    wanted: Mapping[str, torch.Tensor],
    names: Callable[[str], list[str]],
    ignore: Iterable[str] = (),
    tied: Mapping[str, str] | None = None,
) -> dict[str, TensorSource]:
    """The part's tensor for each wanted one, by the wanted names.

    Args:
        part: Source.
        wanted: What the model needs; only shapes are read (meta tensors will do).
        names: Possible names in the source of a wanted name.
        ignore: Regular expressions of source names that may be left over.
        tied: Wanted names that are stored under another wanted name; the source may repeat them, with equal values.

    Raises:
        ValueError: If tensors are missing, left over, of another shape, or tied ones differ; the message names them.
    """
    tied = tied or {}
    found = {key: next((n for n in names(key) if n in part.tensors), None) for key in {**wanted, **tied}}
    missing = [names(key)[-1] for key in wanted if found[key] is None]
    patterns = [re.compile(pattern) for pattern in ignore]
    extra = set(part.tensors) - set(found.values())
    extra = {n for n in extra if not _COMPUTED.search(n) and not any(p.search(n) for p in patterns)}
    misshaped, untied = [], []
    result: dict[str, TensorSource] = {}
    for key, tensor in wanted.items():
        if (name := found[key]) is None:
            continue
        result[key] = part.tensors[name]
        if result[key].shape != tuple(tensor.shape):
            misshaped.append(f"{name} (expected {tuple(tensor.shape)}, got {result[key].shape})")
    for key, kept in tied.items():
        if (name := found[key]) is not None and kept in result and not equal(part.tensors[name], result[kept]):
            untied.append(name)
    problems = [
        f"{len(bad)} tensors {text}: {listed(bad)}"
        for bad, text in (
            (missing, "missing"),
            (sorted(extra), "unknown to the model"),
            (misshaped, "of another shape"),
            (untied, "that the config ties (tie_word_embeddings), but whose values differ"),
        )
        if bad
    ]
    if problems:
        raise ValueError(f"{part.name}: {part.origin} does not fit its config. {'; '.join(problems)}")
    return result


# ---------------------------------------------------------------------- output


def require_new(output: str | Path) -> None:
    """Refuse an output that would overwrite or mix with something."""
    if Path(output).exists() and (not Path(output).is_dir() or any(Path(output).iterdir())):
        raise FileExistsError(f"output: {output} is not empty; name a new folder or remove it")


@contextmanager
def new_checkpoint_folder(output: str | Path, needed_bytes: int) -> Iterator[Path]:
    """A folder to write into that becomes `output` when the block ends, and vanishes when it fails.

    Raises:
        FileExistsError: If `output` is a file or a folder with anything in it.
        OSError: If the disk has no room for `needed_bytes`.
    """
    require_new(output)
    output = Path(output).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < needed_bytes:
        raise OSError(f"output: {output.parent} has {free / 1e9:.1f} GB free, {needed_bytes / 1e9:.1f} GB are needed")
    staging = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        yield staging
        if output.exists():
            output.rmdir()
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def save_without_weights(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Everything that `save_pretrained` writes besides weights, for a model on the meta device: configs and code."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        module: torch.nn.Module = model  # the annotations of `PreTrainedModel.to` lose `self`
        module.to(dtype)
        model.save_pretrained(folder, state_dict={})
    finally:
        if bars:
            logging.enable_progress_bar()
    for path in folder.glob("model*.safetensors*"):
        path.unlink()


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """None and "auto" keep what the source has."""
    if dtype is None or dtype == "auto":
        return None
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    value = allowed.get(str(dtype).removeprefix("torch."))
    if value is None:
        raise ValueError(f"dtype: expected auto, {', '.join(allowed)}, got {dtype!r}")
    return value
