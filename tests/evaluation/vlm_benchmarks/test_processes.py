"""Real processes: killed and resumed, two at once, and lmms-eval's own command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from killed_processes import killed_at

from syvla.evaluation import evaluate_vlm
from syvla.evaluation.vlm_benchmarks.answer_log import AnswerLog
from syvla.evaluation.vlm_benchmarks.benchmarks import BENCHMARKS

ROOT = Path(__file__).resolve().parents[3]
TASKS = ["ai2d", "mmmu"]
OPTIONS = {"max_new_tokens": 4, "limit": 20, "image_budget": "checkpoint", "protocol": "lmms-eval"}

pytestmark = pytest.mark.slow


def environment(*folders):
    variables = {"PYTHONPATH": os.pathsep.join([*map(str, folders), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **variables, "OMP_NUM_THREADS": "1"}


def command(checkpoint, data_root, output, *more):
    options = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    paths = ["--model", checkpoint, "--data-root", data_root, "--output", output]
    return ["-m", "syvla.evaluation.vlm_benchmarks.evaluate_vlm", *map(str, paths), "--tasks", *TASKS, *options, *more]


def answers(folder):
    lines = [json.loads(line) for path in AnswerLog.files(folder) for line in path.read_text().splitlines()]
    return sorted((line["task"], line["doc_id"], line["text"]) for line in lines)


def scores(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return {name: {k: v for k, v in b.items() if k != "seconds"} for name, b in summary["benchmarks"].items()}


@pytest.fixture(scope="module")
def fresh(lmms_eval, checkpoint, data_root, tmp_path_factory):
    """Folder of a run in this process, one question at a time."""
    folder = tmp_path_factory.mktemp("fresh") / "run"
    evaluate_vlm(
        str(checkpoint), TASKS, data_root=data_root, output=folder, max_batch_size=1, progress=False, **OPTIONS
    )
    assert len({text for _, _, text in answers(folder)}) > 10, "equal answers would compare nothing"
    assert 0 < scores(folder)["mmmu"]["unparsable"] < 1, "some letters are drawn"
    return folder


def test_a_killed_run_is_resumed_and_equals_a_fresh_one(fresh, checkpoint, data_root, tmp_path):
    output = tmp_path / "run"
    arguments = command(checkpoint, data_root, output, "--max-batch-size", "1", "--quiet")
    log = "syvla.evaluation.vlm_benchmarks.answer_log:AnswerLog.append"
    moment = killed_at("syvla.evaluation.vlm_benchmarks.evaluate_vlm", log, "len(args[0].known) >= 3")
    killed = subprocess.run([*moment, *arguments[2:]], env=environment(), stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert 3 <= answers_so_far(output) < 40
    assert not (output / "summary.json").exists()
    with AnswerLog.files(output)[0].open("ab") as file:
        file.write(b'{"task": "ai2d", "doc_id": 19, "prom')  # torn, as a full disk would
    options = {"data_root": data_root, "output": output, "progress": False, **OPTIONS}
    with pytest.raises(ValueError, match="holds the answers of an earlier run; pass --resume"):
        evaluate_vlm(str(checkpoint), TASKS, **options)
    evaluate_vlm(str(checkpoint), TASKS, resume=True, max_batch_size=7, **options)
    torn = '{"task": "ai2d", "doc_id": 19, "prom'
    path = AnswerLog.files(output)[0]
    path.write_text(path.read_text().replace(torn + "\n", ""))
    assert answers(output) == answers(fresh), "every question once, with the same answer"
    assert scores(output) == scores(fresh)


def answers_so_far(folder):
    return sum(path.read_bytes().count(b"\n") for path in AnswerLog.files(folder))


def test_two_processes_equal_one(fresh, checkpoint, data_root, tmp_path):
    output = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(checkpoint, data_root, output, "--device", "cpu", "--quiet")
    result = subprocess.run(
        [sys.executable, *launcher, *arguments], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(AnswerLog.files(output)) == 2, "each process wrote answers of its own"
    assert answers(output) == answers(fresh)
    assert scores(output) == scores(fresh)
    assert result.stdout.count("| AI2D | MMMU |") == 1, "the first process alone reports"
    assert json.loads((output / "summary.json").read_text())["settings"]["processes"] == 2


def test_two_processes_equal_one_under_vlmevalkit(checkpoint, data_root, tmp_path):
    shared = {**OPTIONS, "protocol": "vlmevalkit", "limit": 6}
    alone = evaluate_vlm(str(checkpoint), TASKS, data_root=data_root, output=tmp_path / "one", progress=False, **shared)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(checkpoint, data_root, tmp_path / "two", "--device", "cpu", "--quiet")
    arguments += ["--protocol", "vlmevalkit", "--limit", "6"]
    result = subprocess.run(
        [sys.executable, *launcher, *arguments], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert scores(tmp_path / "two") == scores(tmp_path / "one")
    assert alone.settings["protocol"] == "vlmevalkit"


def test_lmms_evals_own_command_finds_the_model(fresh, checkpoint, data_root, tmp_path):
    """By the entry point of the metadata that an installation has; lmms-eval exits with 0 whatever happens."""
    pytest.importorskip("setuptools", reason="setuptools, which makes the metadata, is not installed")
    metadata = tmp_path / "metadata"
    metadata.mkdir()
    script = "from setuptools import setup; setup()"
    made = subprocess.run(
        [sys.executable, "-c", script, "-q", "egg_info", "--egg-base", str(metadata)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    import lmms_eval

    packaged = Path(lmms_eval.__file__).parent / "tasks" / "ai2d" / "ai2d.yaml"
    files = [str(path) for path in (data_root / "ai2d").rglob("*.parquet")]
    task = {
        "include": str(packaged),
        "task": "local_ai2d",
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": files}},
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_ai2d.yaml").write_text(yaml.safe_dump(task))
    arguments = ["--model", "syvla", "--model_args", f"pretrained={checkpoint},dtype=float32", "--tasks", "local_ai2d"]
    arguments += ["--include_path", tmp_path / "tasks", "--batch_size", "4", "--device", "cpu", "--limit", "6"]
    arguments += ["--gen_kwargs", "max_new_tokens=4", "--log_samples", "--output_path", tmp_path / "out"]
    result = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *map(str, arguments)],
        env=environment(metadata),
        capture_output=True,
        text=True,
        timeout=300,
    )
    logs = list((tmp_path / "out").rglob("*samples_local_ai2d.jsonl"))
    assert len(logs) == 1, result.stdout[-3000:] + result.stderr[-3000:]
    assert "|local_ai2d|" in result.stdout.replace(" ", ""), "the table of scores is printed\n" + result.stdout[-3000:]
    (scored,) = (tmp_path / "out").rglob("*results.json")
    assert "exact_match,flexible-extract" in json.loads(scored.read_text())["results"]["local_ai2d"]
    samples = [json.loads(line) for line in logs[0].read_text().splitlines()]
    got = {sample["doc_id"]: sample["filtered_resps"].strip() for sample in samples}
    expected = {doc_id: text for task, doc_id, text in answers(fresh) if task == BENCHMARKS["ai2d"].task}
    assert got == {doc_id: expected[doc_id].strip() for doc_id in range(6)}  # its reader of letters strips
