"""Vision-language data in one chat format: `{"messages": [...], "images": [...]}`, loss on the assistant's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset


class MultimodalDataset(Dataset):
    """Any dataset with the columns `messages` and `images`.

    `messages` is a chat in the OpenAI/`transformers` form; a user turn's content is a string, or a list of
    `{"type": "text", "text": ...}` and `{"type": "image"}` parts. `images` holds one entry per image part: a path (relative
    to the file's folder), or an embedded image as `datasets.Image` stores it.

    Args:
        path: A `.jsonl`, `.json` or `.parquet` file, a folder written by `datasets.save_to_disk`, or a Hub id.
        split: Split to read where there are several.
        revision: Hub revision.

    Raises:
        ValueError: If the columns are missing. A row that cannot be read raises when it is asked for, naming the row.
    """

    def __init__(self, path: str | Path, split: str = "train", revision: str | None = None) -> None:
        import datasets

        source = Path(path)
        self.name = str(path)
        self.folder = source.parent if source.is_file() else source
        if source.is_file():
            kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(source.suffix)
            if kind is None:
                raise ValueError(f"{path}: expected a .jsonl, .json or .parquet file, got '{source.suffix}'")
            if not source.stat().st_size:
                raise ValueError(f"{path}: the file is empty")
            self.rows = datasets.load_dataset(kind, data_files=str(source), split="train")
        elif source.is_dir():
            loaded = datasets.load_from_disk(str(source))
            self.rows = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            self.rows = datasets.load_dataset(str(path), split=split, revision=revision)
        missing = {"messages", "images"} - set(self.rows.column_names)
        if missing:
            raise ValueError(f"{path}: lacks the columns {sorted(missing)}; it has {self.rows.column_names}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: row {index} of {len(self)}")
        try:
            row = self.rows[index]  # decodes embedded images
            images = [self._image(image) for image in row["images"] or []]
            return {"messages": [_message(m) for m in row["messages"]], "images": images}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.name}, row {index}: cannot be read ({error}); repair or remove it") from error

    def _image(self, image: Any) -> Any:
        import io

        from PIL import Image

        if isinstance(image, str):
            path = (self.folder / image).resolve()
            if not path.is_relative_to(self.folder.resolve()):
                raise ValueError(f"images: {image!r} lies outside the dataset's folder")
            return Image.open(path).convert("RGB")
        if isinstance(image, dict):
            if image.get("bytes") is None:
                return self._image(image["path"])
            return Image.open(io.BytesIO(image["bytes"])).convert("RGB")
        return image.convert("RGB")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Drop the empty fields that columnar storage adds to content parts."""
    content = message["content"]
    if not isinstance(content, str):
        content = [{key: value for key, value in part.items() if value is not None} for part in content]
    return {"role": message["role"], "content": content}
