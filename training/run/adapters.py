"""LoRA and DoRA through PEFT: a small file of weights that adapts a frozen checkpoint.

An adapter's folder holds the adapter weights, the processor and the model's config. It is loaded onto its base with
`load_adapter`, or made into a checkpoint of its own:

    python -m syvla.training.run.adapters merge BASE ADAPTER OUTPUT
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from syvla.command_line import CommandParser, error_text

logger = logging.getLogger(__name__)

ADAPTERS = ("none", "lora", "dora")
SCOPES = ("vlm", "expert", "both")
TRAINED_MODULES = ("action_queries", "adapter", "expert.embodiments")
"""Parts that an adapter trains as they are instead of through a low-rank update: small ones, which a new robot or a newly
assembled model starts from random weights."""

CONFIG_FILE = "syvla_config.json"
"""Config of the adapted model; not `config.json`, which would make the folder look like a whole checkpoint."""

_TARGETS = {
    "vlm": r"vlm\.model\.language_model\.layers\.\d+\.(self_attn|mlp)",
    "expert": r"expert\.layers\.\d+\.(self_attn|cross_attn|mlp)",
}
# Fields of the config that a run may change and that alter no weight's shape.
_BEHAVIOR = (
    "num_inference_steps",
    "flow_solver",
    "flow_grid_power",
    "time_beta_alpha",
    "time_beta_beta",
    "time_max",
    "intention_decoupling",
    "decoupling_quantile",
    "decoupling_scope",
    "decoupling_choice",
    "query_noise",
    "conditioning",
    "chunk_end",
    "simulated_delay",
    "advantage_conditioned",
    "action_loss_weight",
    "lm_loss_weight",
)


def target_modules(scope: str) -> str:
    """Regular expression of the adapted layers: all attention and MLP projections of the chosen transformers.

    Args:
        scope: "vlm" (its language model; the image encoder stays as it is), "expert" or "both".
    """
    if scope not in SCOPES:
        raise ValueError(f"adapter_scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
    parts = [_TARGETS[name] for name in (("vlm", "expert") if scope == "both" else (scope,))]
    return rf"({'|'.join(parts)})\.(q|k|v|o|gate|up|down)_proj"


def add_adapter(
    model: Any,
    kind: str = "lora",
    scope: str = "both",
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    trained_modules: Iterable[str] = TRAINED_MODULES,
    embodiments: Collection[str] | None = None,
) -> Any:
    """Wrap a model with a fresh adapter; its own weights are frozen and the adapter starts as the identity.

    The frozen weights keep their dtype, or are quantized; all that is trained is float32.

    Args:
        model: A [`SyVLAModel`] that already knows all robots it will be trained on.
        kind: "lora" (Hu et al. 2021) or "dora" (Liu et al. 2024).
        scope: See `target_modules`.
        rank: Rank of the low-rank updates.
        alpha: Updates are scaled by alpha / rank.
        dropout: Dropout on the adapters' inputs. Ours: 0, since the two passes of Intention Decoupling would otherwise
            see two different networks.
        trained_modules: Names of modules to train fully and to save with the adapter.
        embodiments: Robots that are trained; the coders of others stay frozen. None: all.

    Returns:
        `peft.PeftModel`.
    """
    if kind not in ADAPTERS[1:]:
        raise ValueError(f"adapter: expected one of {', '.join(ADAPTERS[1:])}, got {kind!r}")
    if rank < 1:
        raise ValueError(f"adapter_rank: expected a positive integer, got {rank}")
    targets = target_modules(scope)
    peft = _peft()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_dora=kind == "dora",
        target_modules=targets,
        modules_to_save=_layers(model, trained_modules, embodiments) or None,
    )
    adapted = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # a step is often smaller than half precision can add to a weight
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    logger.info("%s adapter of rank %d on %s: %d trained parameters", kind, rank, scope, trained)
    return adapted


def base_model(model: Any) -> Any:
    """The [`SyVLAModel`] inside a `peft.PeftModel`, or the model itself."""
    return model.get_base_model() if is_adapted(model) else model


def is_adapted(model: Any) -> bool:
    """Whether the model is a `peft.PeftModel`; needs no peft to say no."""
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


def describe_adapter(model: Any) -> dict[str, Any] | None:
    """Kind, scope, rank and alpha of a model's adapter for its card; None without one."""
    if not is_adapted(model):
        return None
    config = model.peft_config[model.active_adapter]
    scopes = [scope for scope in SCOPES if target_modules(scope) == config.target_modules]
    return {
        "kind": "dora" if config.use_dora else "lora",
        "scope": scopes[0] if scopes else "custom",
        "rank": config.r,
        "alpha": config.lora_alpha,
    }


def save_config(model: Any, folder: Path) -> None:
    """Write the config of the adapted model beside its adapter."""
    base_model(model).config.to_json_file(folder / CONFIG_FILE)


def load_adapter(adapter: str | Path, base: Any = None, *, trainable: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    """An adapted model and its processor.

    Args:
        adapter: Folder or Hub id of the adapter.
        base: Checkpoint folder, Hub id or a loaded [`SyVLAModel`]; None: the one that the adapter names.
        trainable: Whether to go on training it.
        kwargs: For `AutoModel.from_pretrained` of the base, such as `dtype`.

    Returns:
        (`peft.PeftModel`, [`SyVLAProcessor`]).

    Raises:
        ValueError: If the adapter does not fit the base; names the weights.
    """
    from transformers import AutoModel, AutoProcessor

    import syvla  # noqa: F401  registers the Auto classes

    peft = _peft()
    if base is None:
        base = peft.PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
        if not base:
            raise ValueError(f"{adapter}: names no base checkpoint; pass base=")
    model = AutoModel.from_pretrained(base, **kwargs) if isinstance(base, (str, Path)) else base
    _extend_as_saved(model, _fetch(adapter, CONFIG_FILE))
    adapted = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    _require_all_weights(adapted, adapter)
    return adapted.train(trainable), AutoProcessor.from_pretrained(str(adapter))


def merge_adapter(base: Any, adapter: str | Path, output: str | Path) -> Path:
    """Merge an adapter into its base and save a plain checkpoint with processor and card. Returns its folder."""
    from syvla.training.hub.model_card import RUN_FILE, write_model_card

    adapted, processor = load_adapter(adapter, base)
    model = adapted.merge_and_unload()
    output = Path(output)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    fields = json.loads(_fetch(adapter, RUN_FILE).read_text(encoding="utf-8"))
    write_model_card(output, model.config, processor, {**fields, "adapter": None, "model_name": None, "model_id": None})
    return output


def _layers(model: nn.Module, names: Iterable[str], embodiments: Collection[str] | None) -> list[str]:
    """Full names of the layers inside the named modules: the model indexes into its MLPs, so those stay unwrapped."""
    layers = []
    for name in names:
        try:
            root = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"adapter_trained_modules: the model has no module {name!r}") from error
        for below, module in root.named_modules(prefix=name):
            robot = below.removeprefix("expert.embodiments.").split(".")[0]
            if below.startswith("expert.embodiments.") and embodiments is not None and robot not in embodiments:
                continue
            if next(module.parameters(recurse=False), None) is not None:
                layers.append(below)
    return layers


def _extend_as_saved(model: Any, config_path: Path) -> None:
    """Bring a base model to the shape that it had when the adapter was saved: robots, chunk size, number of queries."""
    from syvla.modeling_syvla import SyVLAConfig
    from syvla.modeling_syvla.resizing import resize_chunk, resize_queries

    saved = SyVLAConfig.from_json_file(config_path)
    for name, entry in sorted(saved.embodiments.items(), key=lambda item: item[1]["id"]):
        model.add_embodiment(name, entry["state_dim"], entry["action_dim"])
        got = model.config.embodiments[name]["id"]
        if got != entry["id"]:
            raise ValueError(
                f"embodiments.{name}: the adapter was trained with id {entry['id']}, this base gives {got}; "
                "load it onto the checkpoint that it was trained from"
            )
    resize_chunk(model, saved.chunk_size)
    resize_queries(model, saved.num_query_tokens)
    for key in _BEHAVIOR:
        setattr(model.config, key, getattr(saved, key))


def _require_all_weights(adapted: Any, adapter: str | Path) -> None:
    """PEFT warns about missing weights and ignores unknown ones; both make another policy than the saved one."""
    from safetensors import safe_open

    expected = set(_peft().get_peft_model_state_dict(adapted))
    with safe_open(_fetch(adapter, "adapter_model.safetensors"), "pt") as file:
        got = set(file.keys())
    problems = {"missing from the adapter": expected - got, "unknown to the model": got - expected}
    if any(problems.values()):
        text = "; ".join(f"{len(n)} weights {what}, such as {min(n)}" for what, n in problems.items() if n)
        raise ValueError(f"{adapter}: does not fit its base: {text}. Was it trained from this checkpoint?")


def _fetch(repository: str | Path, name: str) -> Path:
    """A file of a local folder or of a Hub repository."""
    if Path(repository).is_dir():
        path = Path(repository) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; is {repository} the folder of a SyVLA adapter?")
        return path
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(repository), name))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("adapters need the package peft; install it with: pip install 'syvla[peft]'") from error
    return peft


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m syvla.training.run.adapters`. Returns the exit status."""
    parser = CommandParser(
        prog="syvla-adapters",
        description="Work with LoRA and DoRA adapters.",
        example="syvla-adapters merge outputs/base outputs/adapter outputs/merged",
    )
    commands = parser.add_subparsers(parser_class=argparse.ArgumentParser, required=True, metavar="COMMAND")
    merge = commands.add_parser("merge", help="merge an adapter into its base: one plain checkpoint")
    merge.add_argument("base", help="checkpoint folder or Hub id that the adapter was trained from")
    merge.add_argument("adapter", help="folder or Hub id of the adapter")
    merge.add_argument("output", help="folder of the new checkpoint")
    arguments = parser.parse_args(argv)
    try:
        folder = merge_adapter(arguments.base, arguments.adapter, arguments.output)
    except (ValueError, OSError) as error:
        print(error_text("error", error), file=sys.stderr)
        return 1
    print(json.dumps({"checkpoint": str(folder)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
