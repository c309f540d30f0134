"""The benchmarks' parquet files below `--data-root`, checked before anything slow begins."""

from __future__ import annotations

from pathlib import Path

from .benchmarks import Benchmark

COLUMNS = {
    "docvqa": ("question", "image", "answers"),
    "ai2d": ("question", "options", "answer", "image"),
    "mmmu": ("id", "question", "options", "answer", "question_type", "image_1"),
    "mme": ("question_id", "image", "question", "answer", "category"),
    "hallusionbench": (
        "category",
        "subcategory",
        "set_id",
        "figure_id",
        "question_id",
        "question",
        "gt_answer",
        "gt_answer_details",
        "image",
    ),
}


def parquet_files(benchmark: Benchmark, data_root: str | Path) -> list[Path]:
    """The files of the benchmark's split, wherever they lie below its folder.

    A folder named like the config, where the dataset has several, is searched alone.

    Raises:
        FileNotFoundError: If there are none; says what to put where.
        ValueError: If a file is damaged or lacks columns.
    """
    import pyarrow
    import pyarrow.parquet

    folder = Path(data_root) / benchmark.folder
    search = folder / benchmark.config if benchmark.config and (folder / benchmark.config).is_dir() else folder
    files = sorted({*search.rglob(f"{benchmark.split}-*.parquet"), *search.rglob(f"{benchmark.split}.parquet")})
    if not files:
        raise FileNotFoundError(
            f"data_root: no {benchmark.split}-*.parquet for {benchmark.column} below {folder}; " + how_to_get(benchmark)
        )
    for path in files:
        try:
            names = pyarrow.parquet.read_schema(path).names
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: no readable parquet file ({error}); download it again") from error
        missing = [name for name in COLUMNS[benchmark.name] if name not in names]
        if missing:
            raise ValueError(
                f"{path}: lacks the columns {missing} of {benchmark.dataset}; it has {names}. " + how_to_get(benchmark)
            )
    return files


def how_to_get(benchmark: Benchmark) -> str:
    """One sentence: what to put where."""
    return (
        f"put the dataset {benchmark.dataset} into DIR/{benchmark.folder} and pass --data-root DIR: "
        f"hf download {benchmark.dataset} --repo-type dataset --local-dir DIR/{benchmark.folder}"
    )
