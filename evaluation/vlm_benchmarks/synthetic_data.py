"""Five small benchmarks in the official schemas, and chats of the same kind to train on.

    python -m syvla.evaluation.vlm_benchmarks.synthetic_data --output outputs/synthetic --rows 120 --train-rows 4000 --seed 0

writes `outputs/synthetic/benchmarks/` for `--data-root` of `syvla-eval-vlm`, and `outputs/synthetic/train/chats.jsonl` for
`--multimodal_datasets` of `syvla-finetune`. The chats ask in the words of the protocol, so that a tiny model can be
trained on them and then measured as a big one is. Both come from the seed, from streams of their own: no picture of one is
in the other.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from syvla.command_line import error_text

from .benchmarks import YES_NO_PROMPT, chosen_benchmarks
from .protocols import LMMS_EVAL, PROTOCOLS, VLMEVALKIT, chosen_protocol
from .synthetic_rows import MME_SUFFIX, ROWS, Row
from .vlmevalkit_prompts import question_content

logger = logging.getLogger(__name__)

WORD_PROMPT = "Answer the question using a single word or phrase."
LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
_INT64 = ("docId",)
_LISTS = ("question_types", "answers")


def write_benchmarks(root: str | Path, rows: int = 120, seed: int = 0, tasks: Sequence[str] | None = None) -> Path:
    """Writes `rows` rows of every benchmark as parquet files in the layout of `--data-root`. Returns the root.

    MME holds pairs, so an odd number is rounded up there. Equal arguments give equal pictures, questions and answers.

    Args:
        root: Folder to write to; it gets `DocVQA/`, `ai2d/`, `MMMU/`, `MME/` and `HallusionBench/`.
        rows: Rows per benchmark, at least 1.
        seed: Seed of the held-out pictures.
        tasks: Names out of `BENCHMARKS`; all when None.
    """
    import datasets

    _require_rows(rows)
    root = Path(root)
    for benchmark in chosen_benchmarks(tasks):
        table = ROWS[benchmark.name](_stream("benchmark", benchmark.name, seed), rows)
        folder = root / benchmark.folder / (benchmark.config or "data")
        folder.mkdir(parents=True, exist_ok=True)
        data = datasets.Dataset.from_list(table, features=_features(table[0]))
        data.to_parquet(folder / f"{benchmark.split}-00000-of-00001.parquet")
    return root


def write_chats(
    folder: str | Path,
    rows: int = 1000,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    protocol: str = VLMEVALKIT.name,
) -> Path:
    """Writes `rows` chats, the benchmarks in turn, as `chats.jsonl` with an `images/` folder. Returns the file's path.

    The format is that of `processing.MultimodalDataset`.

    Args:
        folder: Folder to write to.
        rows: Chats in all, at least 1.
        seed: Seed of the training pictures; the same seed's benchmarks hold other pictures.
        tasks: Names out of `BENCHMARKS`; all when None.
        protocol: In whose words the questions are asked.
    """
    _require_rows(rows)
    chosen_protocol(protocol)
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [benchmark.name for benchmark in chosen_benchmarks(tasks)]
    share = -(-rows // len(names))
    tables = {name: ROWS[name](_stream("train", name, seed), share) for name in names}
    lines = []
    for i in range(rows):
        name, index = names[i % len(names)], i // len(names)
        row = tables[name][index]
        content, images, answer = chat_of(name, row, protocol)
        paths = []
        for k, image in enumerate(images):
            paths.append(f"images/{name}-{index:06d}-{k}.png")
            image.save(folder / paths[-1])
        # Parts, never a bare string: `datasets` reads a string "3" beside lists as the number 3.
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        lines.append(json.dumps({"messages": messages, "images": paths}))
    path = folder / "chats.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def oracle_answer(name: str, row: Row) -> str:
    """The right answer to a row of benchmark `name`, in the form its prompt asks for."""
    if name == "docvqa":
        first: str = row["answers"][0]
        return first
    if name == "ai2d":
        return "ABCDEFGH"[int(row["answer"])]
    if name == "hallusionbench":
        return "Yes" if str(row["gt_answer"]) == "1" else "No"
    answer: str = row["answer"]
    return answer


def chat_of(name: str, row: Row, protocol: str) -> Chat:
    """Content parts of the question in a row of benchmark `name`, its images, and the right answer."""
    if protocol == LMMS_EVAL.name:
        return CHATS[name](row)
    content = question_content(name, row)
    images = [part["image"] for part in content if part["type"] == "image"]
    parts = [{"type": "image"} if part["type"] == "image" else part for part in content]
    return parts, images, oracle_answer(name, row)


Chat = tuple[list[dict[str, str]], list[Any], str]
"""Content parts of the question, its images, and the answer."""


def _simple_chat(name: str, row: Row, text: str) -> Chat:
    return [{"type": "image"}, {"type": "text", "text": text}], [row["image"]], oracle_answer(name, row)


def _ai2d_chat(row: Row) -> Chat:
    return _simple_chat("ai2d", row, f"{row['question']}\n{_options(row['options'])}\n{LETTER_PROMPT}")


def _mmmu_chat(row: Row) -> Chat:
    images = [row[f"image_{k}"] for k in range(1, 8) if row[f"image_{k}"] is not None]
    question = row["question"]
    for k in range(1, len(images) + 1):  # the rows name every image once, at the start
        question = question.replace(f"<image {k}>", "")
    options = ast.literal_eval(row["options"])
    ending = f"\n{_options(options)}\n\n{LETTER_PROMPT}" if options else f"\n\n{WORD_PROMPT}"
    parts = [{"type": "image"} for _ in images]
    return [*parts, {"type": "text", "text": question.strip() + ending}], images, row["answer"]


CHATS: dict[str, Callable[[Row], Chat]] = {
    "docvqa": lambda row: _simple_chat("docvqa", row, f"{row['question']}\n{WORD_PROMPT}"),
    "ai2d": _ai2d_chat,
    "mmmu": _mmmu_chat,
    "mme": lambda row: _simple_chat("mme", row, row["question"].replace(MME_SUFFIX, "") + "\n" + WORD_PROMPT),
    "hallusionbench": lambda row: _simple_chat("hallusionbench", row, row["question"] + YES_NO_PROMPT),
}


def _options(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGH", options, strict=False))


def _stream(purpose: str, name: str, seed: int) -> random.Random:
    return random.Random(f"{purpose}/{name}/{seed}")


def _require_rows(rows: int) -> None:
    if rows < 1:
        raise ValueError(f"rows: expected at least 1, got {rows}")


def _features(row: Row) -> Any:
    """Column types of the official datasets: strings, but for images, lists of strings and one number."""
    import datasets

    def feature(name: str) -> Any:
        if name.startswith("image"):
            return datasets.Image()
        if name in _LISTS or (name == "options" and isinstance(row[name], list)):
            return datasets.List(datasets.Value("string"))
        return datasets.Value("int64" if name in _INT64 else "string")

    return datasets.Features({name: feature(name) for name in row})


def main(argv: Sequence[str] | None = None) -> int:
    """Writes both and prints where. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="Folder to write to.")
    parser.add_argument("--rows", type=int, default=120, help="Rows of each benchmark (default %(default)s).")
    parser.add_argument("--train-rows", type=int, default=4000, help="Chats to train on (default %(default)s).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of both (default %(default)s).")
    parser.add_argument(
        "--protocol",
        default=VLMEVALKIT.name,
        choices=PROTOCOLS,
        help="In whose words the chats ask (default %(default)s).",
    )
    args = parser.parse_args(argv)
    try:
        root = write_benchmarks(Path(args.output) / "benchmarks", args.rows, args.seed)
        chats = write_chats(Path(args.output) / "train", args.train_rows, args.seed, protocol=args.protocol)
    except (ValueError, OSError) as error:
        print(error_text("error", error), file=sys.stderr)
        return 1
    print(json.dumps({"data_root": str(root), "multimodal_dataset": str(chats)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
