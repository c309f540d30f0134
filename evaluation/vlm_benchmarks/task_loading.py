"""lmms-eval's tasks for the five benchmarks, on local or Hub data, with what has to differ from the packaged ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .benchmarks import YES_NO_PROMPT, Benchmark
from .hallusion_accuracy import METRICS, hallusion_accuracies
from .judge_server import JudgeServer
from .local_datasets import how_to_get, parquet_files
from .mmmu_images import lmms_eval_messages
from .yes_no_rule import Verdict, rule_verdict

_TASK_FOLDERS = ("docvqa", "ai2d", "mmmu", "mme", "hallusion_bench")


def load_task(benchmark: Benchmark, data_root: str | Path | None = None, judge: JudgeServer | None = None) -> Any:
    """The lmms-eval task of a benchmark, chat type.

    Args:
        benchmark: Which.
        data_root: Folder with the datasets; None: the Hub, or its cache when offline.
        judge: Judge of HallusionBench; None: the word-level rule, which needs an answer of yes or no, so that the question
            asks for one. With a judge the prompt is lmms-eval's own.

    Raises:
        FileNotFoundError: If the data are not there; says what to put where.
    """
    import lmms_eval.tasks
    from tenacity import RetryError

    # Not the login that the packaged tasks demand.
    config: dict[str, Any] = {"task": benchmark.task, "dataset_kwargs": {}}
    if data_root is not None:
        files = [str(path) for path in parquet_files(benchmark, data_root)]
        config |= {"dataset_path": "parquet", "dataset_name": None}
        config["dataset_kwargs"] = {"data_files": {benchmark.split: files}}
    if benchmark.name == "mmmu":
        config["process_results"] = _mmmu_process_results()
        config["doc_to_messages"] = lmms_eval_messages
    if benchmark.name == "hallusionbench":
        config |= _hallusion_config(judge)
    root = Path(lmms_eval.tasks.__path__[0])
    manager = lmms_eval.tasks.TaskManager(
        "WARNING", include_defaults=False, include_path=[str(root / name) for name in _TASK_FOLDERS]
    )
    try:
        return manager.load_task_or_group([config], task_type="chat")[benchmark.task]
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise FileNotFoundError(
            f"{benchmark.column}: {benchmark.dataset} can be read neither from the Hub nor from its cache "
            f"({type(cause).__name__}: {cause}); {how_to_get(benchmark)}"
        ) from cause


def _mmmu_process_results() -> Callable[[dict[str, Any], list[str]], dict[str, Any]]:
    """MMMU's own scoring, whose random letter for an unreadable answer depends on the question alone.

    Upstream draws it from the global generator, so that it changes with the number of processes.
    """
    from lmms_eval.tasks.mmmu.utils import mmmu_process_results

    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        random.seed(f"mmmu/{doc['id']}")
        scores: dict[str, Any] = mmmu_process_results(doc, results)
        return scores

    return process_results


def _hallusion_config(judge: JudgeServer | None) -> dict[str, Any]:
    """Verdicts by rule or judge in place of lmms-eval's judge, whose cache does not know the model."""
    scores: dict[str, float] = {}

    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        row = {key: value for key, value in doc.items() if key != "image"} | {"answer": results[0]}
        return dict.fromkeys(METRICS, row)

    def aggregation(metric: str) -> Callable[[Sequence[dict[str, Any]]], float]:
        def aggregate(rows: Sequence[dict[str, Any]]) -> float:
            if not scores:  # the three metrics get the same rows: one verdict each is enough
                scores.update(hallusion_accuracies(rows, hallusion_verdicts(rows, judge)))
            return scores[metric]

        return aggregate

    config: dict[str, Any] = {
        "process_results": process_results,
        "metric_list": [
            {"metric": name, "aggregation": aggregation(name), "higher_is_better": True} for name in METRICS
        ],
    }
    if judge is None:
        config["lmms_eval_specific_kwargs"] = {"default": {"pre_prompt": "", "post_prompt": YES_NO_PROMPT}}
    return config


def hallusion_verdicts(rows: Sequence[dict[str, Any]], judge: JudgeServer | None) -> list[Verdict]:
    """Verdicts on rows of HallusionBench with their `answer`."""
    if judge is not None:
        return judge.verdicts(rows, [row["answer"] for row in rows])
    return [rule_verdict(row["answer"], row["gt_answer"]) for row in rows]
