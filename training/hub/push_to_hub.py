"""Upload checkpoints, adapters and datasets to the Hugging Face Hub, each with its card.

python -m syvla.training.hub.push_to_hub CHECKPOINT organization/name
python -m syvla.training.hub.push_to_hub --dataset DATASET organization/name
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from syvla.command_line import CommandParser, error_text

logger = logging.getLogger(__name__)

NOT_UPLOADED = (
    "_*",
    "checkpoint-*",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "checkpoint_files.json*",
    "unlogged_losses*",
    "raw_weights*",
    "ema_weights*",
    "index.html",
)
"""What a training run keeps for itself, among it its page, which shows pictures of the data.

Besides these, no pickles (`*.bin`, `*.pt`, `*.pth`, `*.pkl`) are uploaded."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload checkpoint",
    create_pr: bool = False,
    token: str | None = None,
    blocking: bool = True,
) -> Any:
    """Upload a checkpoint folder: model, processor, code and card in one commit. The repository is made when missing.

    The card is part of the commit, so that nothing writes a generic one in its place; a later
    `model.push_to_hub(repo_id)` keeps it. A value model without a card gets one from its config.

    Args:
        folder: A folder that `save_pretrained` of model and processor, or a trainer, wrote: SyVLA checkpoints, value
            models, adapters.
        repo_id: "organization/name".
        private: Visibility of a new repository; None: the account's default.
        revision: Branch; None: main.
        commit_message: Title of the commit.
        create_pr: Open a pull request instead of committing.
        token: Access token; None: the one that `hf auth login` stored.
        blocking: Wait for the upload; otherwise return a future of the result.

    Returns:
        `CommitInfo`, or a future of it.

    Raises:
        ValueError: If something in the folder would make a broken repository; lists all problems.
    """
    folder = Path(folder)
    _write_missing_value_card(folder)
    problems = checkpoint_problems(folder)
    if problems:
        raise ValueError(f"{folder}: not uploaded:\n- " + "\n- ".join(problems))
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    _name_repository(folder / "README.md", repo_id)
    upload: Any = api.upload_folder
    return upload(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
        ignore_patterns=[*NOT_UPLOADED, *_PICKLES, "trainer_state.json"],
        run_as_future=not blocking,
    )


def push_dataset(
    root: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    commit_message: str = "Upload dataset",
    token: str | None = None,
) -> CommitInfo:
    """Upload a LeRobot dataset and set the tag of its format ("v3.0"), by which LeRobot and `RobotDataset` find it.

    Args:
        root: Folder with `meta/info.json`.
        repo_id: "organization/name".
        license: License to write into the dataset's card, for example "cc-by-4.0"; None leaves the card as it is.
        private: Visibility of a new repository; None: the account's default.
        commit_message: Title of the commit.
        token: Access token; None: the one that `hf auth login` stored.

    Raises:
        ValueError: If the folder is no complete LeRobot dataset.
    """
    root = Path(root)
    version = _dataset_version(root)
    _write_dataset_card(root, license)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=root,
        commit_message=commit_message,
        ignore_patterns=["**/.*", ".*", "*.partial", "*.lock"],
    )
    # A tag of an earlier upload would still point to the earlier data.
    if any(tag.name == version for tag in api.list_repo_refs(repo_id, repo_type="dataset").tags):
        api.delete_tag(repo_id, tag=version, repo_type="dataset")
    api.create_tag(repo_id, tag=version, revision=commit.oid, repo_type="dataset")
    return commit


def checkpoint_problems(folder: Path) -> list[str]:
    """What would make a broken repository out of this folder; empty when nothing would."""
    if not folder.is_dir():
        return ["no such folder"]
    problems = []
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        problems.append("neither config.json nor adapter_config.json: is this a checkpoint?")
    problems += [f"{name} is missing" for name in _missing_weights(folder, adapter)]
    if not (folder / "README.md").is_file():
        problems.append("README.md is missing: write a card with syvla.training.hub.model_card.write_model_card")
    else:
        try:
            ModelCard.load(folder / "README.md").data.to_dict()
        except Exception as error:  # yaml and huggingface_hub raise many kinds
            problems.append(f"README.md: its metadata cannot be read: {error}")
    for file in ("config.json", "processor_config.json", "tokenizer_config.json"):
        problems += [f"{file} names {code}.py, which is missing" for code in _missing_code(folder, file)]
    return problems


def _write_missing_value_card(folder: Path) -> None:
    config = folder / "config.json"
    if (folder / "README.md").is_file() or _missing_weights(folder, adapter=False) or not config.is_file():
        return
    fields = json.loads(config.read_text(encoding="utf-8"))
    if fields.get("model_type") == "syvla_value":
        from syvla.modeling_syvla import SyVLAValueConfig  # an upload of anything else needs no torch

        from .value_card import write_value_card

        write_value_card(folder, SyVLAValueConfig.from_pretrained(folder))


def _missing_weights(folder: Path, adapter: bool) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if adapter:
        names = ["adapter_model.safetensors"]
    elif index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    return [name for name in names if not (folder / name).is_file()]


def _missing_code(folder: Path, file: str) -> list[str]:
    """Modules of `auto_map` that are not in the folder; without them `trust_remote_code=True` fails."""
    if not (folder / file).is_file():
        return []
    classes = json.loads((folder / file).read_text(encoding="utf-8")).get("auto_map") or {}
    names = [n for value in classes.values() for n in (value if isinstance(value, list) else [value]) if n]
    modules = sorted({name.split(".")[0] for name in names if "--" not in name})
    return [module for module in modules if not (folder / f"{module}.py").is_file()]


def _name_repository(card: Path, repo_id: str) -> None:
    """Let the card's snippet load the repository: the folder's own name, which stood there, loads nothing elsewhere."""
    text = card.read_text(encoding="utf-8")
    named = re.sub(r'\b(from_pretrained|load_adapter)\("[^"]*"\)', rf'\1("{repo_id}")', text)
    if named != text:
        card.write_text(named, encoding="utf-8")


def _dataset_version(root: Path) -> str:
    info = root / "meta" / "info.json"
    if not info.is_file():
        raise ValueError(f"{root}: has no meta/info.json; expected the folder of a LeRobot dataset")
    version = json.loads(info.read_text(encoding="utf-8")).get("codebase_version")
    if not version:
        raise ValueError(f"{info}: has no codebase_version, which becomes the tag of the repository")
    return str(version)


def _write_dataset_card(root: Path, license: str | None) -> None:
    from huggingface_hub import DatasetCard, DatasetCardData

    path = root / "README.md"
    if path.is_file():
        card = DatasetCard.load(path)
    else:
        data = DatasetCardData(
            task_categories=["robotics"],
            tags=["LeRobot"],
            configs=[{"config_name": "default", "data_files": "data/*/*.parquet"}],
        )
        card = DatasetCard(f"---\n{data.to_yaml()}\n---\n\n# {root.resolve().name}\n")
    if license is None:
        if not card.data.to_dict().get("license"):
            logger.warning("%s: its card names no license, so that nobody may use it; pass license=", root)
        if path.is_file():
            return
    else:
        card.data.license = license
    card.save(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m syvla.training.hub.push_to_hub`. Returns the exit status."""
    parser = CommandParser(
        prog="syvla-push",
        description="Upload a checkpoint, an adapter or a dataset to the Hub.",
        example="syvla-push outputs/my_task me/my-policy",
    )
    parser.add_argument("folder", help="checkpoint, adapter or dataset")
    parser.add_argument("repo_id", help="organization/name")
    parser.add_argument("--dataset", action="store_true", help="the folder is a LeRobot dataset")
    parser.add_argument("--license", dest="license", help="license for the card of a dataset, such as cc-by-4.0")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch of a checkpoint (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request for a checkpoint")
    parser.add_argument("--message", help="title of the commit")
    arguments = parser.parse_args(argv)
    options: dict[str, Any] = {"private": arguments.private}
    if arguments.message:
        options["commit_message"] = arguments.message
    try:
        if arguments.dataset:
            commit = push_dataset(arguments.folder, arguments.repo_id, license=arguments.license, **options)
        else:
            more = {"revision": arguments.revision, "create_pr": arguments.create_pr}
            commit = push_checkpoint(arguments.folder, arguments.repo_id, **more, **options)
    except (ValueError, OSError, HfHubHTTPError, HFValidationError) as error:
        print(error_text("error", error), file=sys.stderr)
        return 1
    print(json.dumps({"repository": arguments.repo_id, "commit": str(commit.commit_url)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
