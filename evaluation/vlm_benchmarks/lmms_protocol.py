"""One benchmark under the protocol `lmms-eval`: asked, read and scored by that package."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .benchmark_report import BenchmarkResult, read_scores
from .benchmarks import Benchmark
from .judge_server import JudgeServer
from .lmms_eval_import import contained_changes, quiet_output
from .vlmevalkit_protocol import gather

if TYPE_CHECKING:
    from .answer_generation import AnswerGenerator


def run_lmms_eval(
    benchmark: Benchmark,
    generator: AnswerGenerator,
    data_root: str | Path | None,
    limit: int | None,
    headline: str,
    judge: JudgeServer | None,
) -> BenchmarkResult | None:
    """As `run_vlmevalkit`, in a call of its own, since lmms-eval returns nothing before all tasks of a call are done.

    The judge gives the verdicts on HallusionBench; without one a rule does, and the question asks for yes or no.
    """
    from lmms_eval.evaluator import simple_evaluate

    from .lmms_model import SyVLAForLmms
    from .task_loading import load_task
    from .unparsable import is_unparsable

    started = time.monotonic()
    with quiet_output(), contained_changes():
        task = load_task(benchmark, data_root, judge)
        task.task_docs = task.eval_docs_no_media  # AI2D's filter iterates over it, and would decode damaged images
        try:
            results = simple_evaluate(
                model=SyVLAForLmms(generator=generator),
                tasks=[task],
                task_manager=SimpleNamespace(),  # the task is loaded; the default one would index 2,000 others
                limit=limit,
                bootstrap_iters=0,
                process_docs_parallel=1,
                distributed_executor_backend="torchrun",
                cli_args=SimpleNamespace(output_path=None, process_with_media=False, reasoning_tags=None),
                verbosity="WARNING",
            )
        except AssertionError as error:
            if "pairwise" in str(error):
                raise ValueError(
                    "MME: a question lacks the second one of its pair; is the dataset complete?"
                ) from error
            raise
    everyone = gather(generator.damaged)
    if results is None:
        return None
    damaged = {i: why for part in everyone for (name, i), why in part.items() if name == benchmark.task}
    samples = results["samples"][benchmark.task]
    unreadable = sum(
        is_unparsable(benchmark.name, sample["doc"], _text(sample), judge is not None) for sample in samples
    )
    result = read_scores(
        benchmark,
        results["results"][benchmark.task],
        len(samples),
        unreadable / max(len(samples), 1),
        time.monotonic() - started,
        headline,
        damaged,
    )
    if benchmark.name == "mmmu":
        from .mmmu_images import misplaced_by_lmms_eval

        result.mended_rows = sum(misplaced_by_lmms_eval(sample["doc"]) for sample in samples)
    return result


def _text(sample: dict[str, Any]) -> str:
    """The raw answer of one of lmms-eval's samples."""
    answer = sample["resps"]
    while isinstance(answer, (list, tuple)):
        answer = answer[0]
    text: str = answer
    return text
