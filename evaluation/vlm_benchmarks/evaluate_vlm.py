"""`syvla-eval-vlm`: what a checkpoint scores on DocVQA, AI2D, MMMU, MME and HallusionBench (paper, Table 2)."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syvla.command_line import CommandParser, error_text

from .answer_log import AnswerLog
from .benchmark_report import RULE, VLMResult
from .benchmarks import BENCHMARKS, Benchmark, chosen_benchmarks
from .hallusion_accuracy import HEADLINES
from .judge_server import JudgeServer
from .lmms_eval_import import quiet_output, require_lmms_eval
from .lmms_protocol import run_lmms_eval
from .local_datasets import parquet_files
from .protocols import IMAGE_BUDGETS, LMMS_EVAL, PROTOCOLS, VLMEVALKIT, chosen_protocol
from .random_state import preserved_random_state
from .vlmevalkit_protocol import run_vlmevalkit

if TYPE_CHECKING:
    from .answer_generation import AnswerGenerator

logger = logging.getLogger(__name__)


def evaluate_vlm(
    model: Any,
    tasks: Sequence[str] | None = None,
    *,
    protocol: str = VLMEVALKIT.name,
    processor: Any = None,
    data_root: str | Path | None = None,
    limit: int | None = None,
    image_budget: str = "protocol",
    output: str | Path | None = None,
    resume: bool = False,
    headline: str = "mean",
    judge_url: str | None = None,
    judge_model: str = "gpt-4",
    judge_key: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    progress: bool = True,
    **generation: int | None,
) -> VLMResult | None:
    """Runs VLM benchmarks under a named protocol. Under torchrun or `accelerate launch` the processes share the rows.

    The random generators of the process are left as they were.

    Args:
        model: Checkpoint folder or Hub id, of SyVLA or plain Qwen2.5-VL; or such a model in memory, with its `processor`;
            or a whole `AnswerGenerator`.
        tasks: Names out of `BENCHMARKS`; all when None.
        protocol: `vlmevalkit` (prompts, image budget and readings with which tables of Qwen2.5-VL-like models are made) or
            `lmms-eval` (that package itself).
        processor: Of a model in memory.
        data_root: Folder with `DocVQA/`, `ai2d/`, `MMMU/`, `MME/`, `HallusionBench/`; None: the Hub or its cache.
        limit: First rows of each benchmark to ask; the result is then labeled a subset.
        image_budget: Whose pixel limits hold where `min_pixels` and `max_pixels` do not say: `protocol` or `checkpoint`.
        output: Folder for `summary.json`, the answers (`answers-rank*.jsonl`) and the judge's verdicts; None: none.
        resume: Whether to take over the answers of an interrupted run in `output`.
        headline: HallusionBench's number among aAcc, qAcc, fAcc and their mean, which leaderboards print; the paper does
            not say which its is.
        judge_url: OpenAI-compatible server. Under `vlmevalkit` it names the option that an unreadable answer means; under
            `lmms-eval` it judges HallusionBench. None: rules alone.
        judge_model, judge_key: Name of the judging model, and a bearer token.
        device, dtype: Of a checkpoint that is loaded.
        progress: Whether to show progress bars.
        generation: `max_batch_size, batch_tokens, max_new_tokens` of `AnswerGenerator`, and `min_pixels, max_pixels` of
            `PromptRenderer`; None is their default.

    Returns:
        The result, on the first process; None on the others.

    Raises:
        ImportError: If the protocol is lmms-eval's and the package is not installed.
        ValueError, OSError: On bad arguments, missing data, answers that `resume` is needed for, or a failing judge.
    """
    chosen = check_request(tasks, data_root, limit, headline, output, resume, protocol, image_budget)
    official = chosen_protocol(protocol)
    version = None
    with preserved_random_state():
        if official is LMMS_EVAL:
            with quiet_output():
                version = require_lmms_eval()
        rank = _join_processes(device)
        options: dict[str, Any] = {name: value for name, value in generation.items() if value is not None}
        if image_budget == "protocol":
            options = {"min_pixels": official.min_pixels, "max_pixels": official.max_pixels, **options}
        options |= {"progress": progress and rank == 0, "fingerprint": output is not None or judge_url is not None}
        generator = _generator(model, processor, device, dtype, options)
        folder = Path(output) if output is not None else None
        if folder is not None:
            generator.log = AnswerLog(folder, generator.checkpoint, rank)
        judge = None
        if judge_url is not None:
            cache = folder / "judge.jsonl" if folder is not None else None
            judge = JudgeServer(judge_url, judge_model, generator.checkpoint, cache, judge_key)
        run = run_lmms_eval if official is LMMS_EVAL else run_vlmevalkit
        columns = {item.name: run(item, generator, data_root, limit, headline, judge) for item in chosen}
    if rank != 0:
        return None
    settings = {
        "model": str(model) if isinstance(model, (str, Path)) else type(model).__name__,
        "limit": limit,
        "protocol": official.name,
        "lmms_eval": version,
        "judge": RULE if judge is None else f"{judge_model} at {judge_url}",
        "headline": headline,
        "data_root": None if data_root is None else str(data_root),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        **generator.settings(),
    }
    result = VLMResult({name: column for name, column in columns.items() if column is not None}, settings)
    if folder is not None:
        result.write(folder / "summary.json")
    return result


def check_request(
    tasks: Sequence[str] | None,
    data_root: str | Path | None = None,
    limit: int | None = None,
    headline: str = "mean",
    output: str | Path | None = None,
    resume: bool = False,
    protocol: str = VLMEVALKIT.name,
    image_budget: str = "protocol",
) -> list[Benchmark]:
    """The benchmarks to run, after everything that can be wrong before the model is loaded.

    Arguments and errors are those of `evaluate_vlm`.
    """
    chosen = chosen_benchmarks(tasks)
    chosen_protocol(protocol)
    if image_budget not in IMAGE_BUDGETS:
        raise ValueError(f"image_budget: expected one of {', '.join(IMAGE_BUDGETS)}, got {image_budget!r}")
    if headline not in HEADLINES:
        raise ValueError(f"headline: expected one of {', '.join(HEADLINES)}, got {headline!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1, got {limit}; leave it out for all rows")
    if limit is not None and limit % 2 and any(benchmark.name == "mme" for benchmark in chosen):
        raise ValueError(
            f"limit: MME scores pairs of questions, so it needs an even number, got {limit}; pass {limit + 1}, or leave "
            "mme out of tasks"
        )
    if data_root is not None:
        for benchmark in chosen:
            parquet_files(benchmark, data_root)
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise ValueError(f"output: {output} is a file; name a folder, which is made if it does not exist")
    if resume and output is None:
        raise ValueError("resume: needs the output folder of the interrupted run")
    if output is not None and not resume and AnswerLog.files(output):
        raise ValueError(
            f"output: {output} holds the answers of an earlier run; pass --resume to go on with it, or another --output"
        )
    return chosen


def _join_processes(device: str | None) -> int:
    """Rank of this process; makes the process group where a launcher started several."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    gpu = torch.cuda.is_available() and not str(device or "").startswith("cpu")
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    torch.distributed.barrier()  # nobody writes answers before everybody has looked for old ones
    return torch.distributed.get_rank()


def _generator(model: Any, processor: Any, device: str | None, dtype: str, options: dict[str, Any]) -> AnswerGenerator:
    from .answer_generation import AnswerGenerator
    from .model_loading import load_generator, make_generator

    if isinstance(model, AnswerGenerator):
        return model
    if isinstance(model, (str, Path)):
        return load_generator(str(model), device=device, dtype=dtype, **options)
    if processor is None:
        raise ValueError("processor: missing; a model in memory needs its processor beside it")
    return make_generator(model, processor, **options)


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-eval-vlm`."""
    from .answer_generation import BATCH_TOKENS, MAX_BATCH_SIZE

    parser = CommandParser(
        prog="syvla-eval-vlm",
        description="Scores of a checkpoint on five VLM benchmarks, under a named protocol (paper, Table 2).",
        example="syvla-eval-vlm --model outputs/my_task --tasks mme --data-root benchmarks_data",
    )
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id: SyVLA, or a plain Qwen2.5-VL")
    parser.add_argument("--tasks", nargs="+", default=list(BENCHMARKS), metavar="TASK", help="benchmarks to run")
    parser.add_argument(
        "--protocol",
        default=VLMEVALKIT.name,
        choices=PROTOCOLS,
        help="prompts, image budget and readings: see docs/evaluation.md",
    )
    parser.add_argument("--data-root", type=Path, help="folder with DocVQA/, ai2d/, MMMU/, MME/, HallusionBench/")
    parser.add_argument("--limit", type=int, help="first rows of each benchmark; the result is labeled a subset")
    parser.add_argument("--output", type=Path, default=Path("outputs/vlm_benchmarks"), help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="take over the answers of an interrupted run")
    parser.add_argument("--max-batch-size", type=int, default=MAX_BATCH_SIZE, help="most questions in a batch")
    parser.add_argument(
        "--batch-tokens", type=int, default=BATCH_TOKENS, help="most tokens in a batch, padding counted"
    )
    parser.add_argument(
        "--image-budget",
        default="protocol",
        choices=IMAGE_BUDGETS,
        help="whose pixel limits hold where the next two do not say",
    )
    parser.add_argument("--min-pixels", type=int, help="smaller images are scaled up to it")
    parser.add_argument("--max-pixels", type=int, help="bigger images are scaled down to it")
    parser.add_argument(
        "--max-new-tokens", type=int, help="cap on an answer's tokens; by default the protocol's own limits"
    )
    parser.add_argument("--headline", default="mean", choices=HEADLINES, help="HallusionBench's number in the table")
    parser.add_argument(
        "--judge-url", help="OpenAI-compatible server that reads what the rules cannot; by default that is wrong"
    )
    parser.add_argument("--judge-model", default="gpt-4", help="name of the judging model")
    parser.add_argument(
        "--judge-key-variable", default="OPENAI_API_KEY", help="environment variable with the judge's key"
    )
    parser.add_argument("--device", help="torch device; by default a GPU where there is one")
    parser.add_argument("--dtype", default="auto", help="parameter dtype, such as bfloat16; auto: the checkpoint's")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.arrange(
        {
            "what is evaluated": ["--model", "--tasks", "--protocol", "--data-root", "--limit", "--headline"],
            "images and answers": ["--image-budget", "--min-pixels", "--max-pixels", "--max-new-tokens"],
            "judge": ["--judge-url", "--judge-model", "--judge-key-variable"],
            "run": ["--output", "--resume", "--max-batch-size", "--batch-tokens", "--device", "--dtype", "--quiet"],
        }
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-eval-vlm`; returns the exit status."""
    import torch

    arguments = vars(build_parser().parse_args(argv))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments["progress"] = not arguments.pop("quiet")
    arguments["judge_key"] = os.environ.get(arguments.pop("judge_key_variable"))
    try:
        result = evaluate_vlm(arguments.pop("model"), **arguments)
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        print(error_text("syvla-eval-vlm", error), file=sys.stderr)
        return 1
    if result is not None:
        print(result.to_text())
        print(json.dumps({"summary": str(arguments["output"] / "summary.json")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
