"""One program at a time changes a dataset: the lock that recording takes as well."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from syvla.durable_files import make_folder
from syvla.processing.robot_data.lerobot_format import INFO_PATH, DatasetError, DatasetInfo, read_info

_FOLDER = ".recording"  # of RobotDatasetWriter


class DatasetLock:
    """Held from construction to `release()`; the system releases it where a process is killed.

    Args:
        root: Folder of the dataset.

    Raises:
        RuntimeError: Another program holds it.
        PermissionError: The folder cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / _FOLDER
        try:
            make_folder(self._folder)
            self._lock = FileLock(self._folder / "lock", thread_local=False)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"{root}: another program annotates or records here; close it, or look at the dataset with `syvla-look`"
            ) from None
        except OSError as error:
            raise PermissionError(f"{root}: {_ADVICE.format(error=error.strerror or error)}") from error

    def release(self) -> None:
        self._lock.release()
        with suppress(OSError):  # files of a recording, or another holder
            os.unlink(self._folder / "lock")
            os.rmdir(self._folder)


_ADVICE = "the folder cannot be written to ({error}); copy the dataset to a folder of your own, or look at it with `syvla-look`"


def require_annotatable(root: Path) -> DatasetInfo:
    """The dataset's `info.json`, once it is clear that sub-tasks may be written there.

    Raises:
        FileNotFoundError: No dataset there.
        DatasetError: Its format has no column for them, or `root` lies in the Hub's cache, which nothing may change.
        PermissionError: The folder or its files cannot be written to.
    """
    info = read_info(root)
    if not info.is_v3:
        raise DatasetError(
            root,
            [
                f"{INFO_PATH}: codebase_version is {info.codebase_version!r}; sub-tasks have a column from v3.0 on. Convert a "
                "copy by LeRobot's script (lerobot.scripts.convert_dataset_v21_to_v30), or look at the dataset with "
                "`syvla-look`"
            ],
        )
    from huggingface_hub.constants import HF_HUB_CACHE

    if root.resolve().is_relative_to(Path(HF_HUB_CACHE).resolve()):
        raise DatasetError(
            root,
            [
                "the folder is in the Hub's cache, whose files nothing may change; download a copy of your own: "
                "`hf download NAME --repo-type dataset --local-dir FOLDER`"
            ],
        )
    for folder in (root, root / "meta", root / "data"):
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder}: {_ADVICE.format(error='Permission denied')}")
    return info
