"""What a model card says about the data of a run."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import RepoCard

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"


def describe_robot_dataset(spec: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """Facts about one robot dataset of a run.

    Args:
        spec: Entry of `robot_datasets`.
        dataset: The open [`RobotDataset`].
    """
    return {
        **_source(spec, dataset.root),
        "kind": "robot",
        "samples": dataset.num_frames,
        "episodes": dataset.num_episodes,
        "fps": dataset.fps,
        "tasks": len(dataset.tasks),
        "thoughts": dataset.thought_column is not None,
        "embodiment": dataset.embodiment,
        "cameras": dict(dataset.cameras),
        "weight": spec.get("weight"),
    }


def describe_multimodal_dataset(spec: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """Facts about one multi-modal dataset of a run."""
    return {
        **_source(spec, dataset.folder),
        "kind": "multi-modal",
        "samples": len(dataset),
        "weight": spec.get("weight"),
    }


def hub_id(path: str | Path) -> str | None:
    """`organization/name` if that is what `path` means, None for a local file or folder."""
    text = str(path)
    return text if not Path(text).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", text) else None


def dataset_license(folder: str | Path | None, repo_id: str | None = None, revision: str | None = None) -> str:
    """License that a dataset's card names, "unknown" where it names none or cannot be read."""
    try:
        card = _card(folder, repo_id, revision)
    except Exception as error:  # a card is a courtesy: no network and no broken YAML may stop a training run
        logger.info("%s: no dataset card could be read (%s)", repo_id or folder, error)
        return UNKNOWN
    data = card.data.to_dict() if card is not None else {}
    license = data.get("license") or UNKNOWN
    license = ", ".join(map(str, license)) if isinstance(license, list) else str(license)
    return str(data.get("license_name") or license) if license == "other" else license


def _card(folder: str | Path | None, repo_id: str | None, revision: str | None) -> RepoCard | None:
    if folder is not None and (Path(folder) / "README.md").is_file():
        described: RepoCard = RepoCard.load(Path(folder) / "README.md")
        return described
    if repo_id is None:
        return None
    from huggingface_hub import hf_hub_download

    card: RepoCard | None = RepoCard.load(hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=revision))
    return card


def _source(spec: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    repo_id = hub_id(spec["path"])
    local = folder if Path(folder).is_dir() else None
    return {
        "name": repo_id or Path(spec["path"]).name,
        "id": repo_id,
        "license": dataset_license(local, repo_id, spec.get("revision")),
    }
