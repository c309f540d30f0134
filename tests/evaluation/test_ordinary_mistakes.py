"""What a newcomer types wrongly: each is one error that names the option, what came and what to type; nothing is ignored."""

import json
from pathlib import Path

import pytest

from syvla.evaluation import closed_loop
from syvla.evaluation.compare import main as compare
from syvla.evaluation.vlm_benchmarks.evaluate_vlm import main as evaluate_vlm
from syvla.evaluation.vlm_benchmarks.synthetic_data import write_benchmarks

ROOT = Path(__file__).resolve().parents[2]

SHORT = ["--episodes", "1", "--env-option", "max_steps=4", "--quiet"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "outputs/demo/checkpoint"],
            "model: outputs/demo/checkpoint is not a folder; expected a folder or Hub id",
        ),
        (
            ["--model", "no.such/model"],
            "model: no.such/model is no folder here, and there is no such checkpoint to be had",
        ),
        (
            ["--model", "still", "--think"],
            "think: it has no effect here: 'still' reads no such option; leave it out, or pass --model",
        ),
        (["--model", "expert", "--num-steps", "4"], "num_steps: it has no effect here: 'expert' reads no such option"),
        (
            ["--model", "still", "--device", "cuda"],
            "device: it has no effect here: it belongs to a checkpoint; start the policy server with --device",
        ),
        (
            ["--model", "still", "--prompt", "lift"],
            "prompt: it has no effect here: it belongs to a policy server; leave it out, or pass --server URL",
        ),
        (["--model", "still", "--timeout", "5"], "timeout: it has no effect here: it belongs to a policy server"),
        (
            ["--server", "127.0.0.1:9", "--compile"],
            "compile: it has no effect here: it belongs to a checkpoint; start the policy server with --compile",
        ),
        (
            ["--server", "127.0.0.1:9", "--timeout", "1"],
            "is the server running? Start one: syvla-serve --model CHECKPOINT --port 9",
        ),
        (["--model", "still", "--episode", "3"], "expected environment seeds from 1000000 on, got [3]; episodes.jsonl"),
        (["--model", "still", "--video-episodes", "-1"], "video_episodes: expected 0 or more, got -1"),
        (["--model", "still", "--shard", "9/8"], "shard: expected K/N with 1 <= K <= N, such as 2/8, got '9/8'"),
        (["--model", "still", "--output", "file"], "output: file is a file; name a folder"),
        (["--model", "still", "--env", "nowhere:Env"], "environment 'nowhere:Env' needs nowhere"),
        (["--merge", "empty"], "empty: no summary.json; expected the --output of a finished syvla-eval --shard K/N"),
    ],
)
def test_each_is_one_clear_error(folder, capsys, arguments, message):
    (folder / "file").write_text("")
    (folder / "empty").mkdir()
    short = [] if "--merge" in arguments else SHORT
    assert closed_loop.main([*arguments, *short]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("syvla-eval: ")
    assert not (folder / "outputs").exists(), "nothing was written"


def test_a_folder_that_is_no_checkpoint_says_which_is(folder, capsys):
    (folder / "run" / "checkpoint-20").mkdir(parents=True)
    assert closed_loop.main(["--model", "run", *SHORT]) == 1
    assert "model: run has no config.json, so it is no checkpoint\n" in capsys.readouterr().err
    (folder / "run" / "checkpoint-20" / "config.json").write_text("{}")
    assert closed_loop.main(["--model", "run", *SHORT]) == 1
    assert "so it is no checkpoint; there is one in run/checkpoint-20" in capsys.readouterr().err
    (folder / "run" / "config.json").write_text(json.dumps({"type": "act"}))
    assert closed_loop.main(["--model", "run", *SHORT]) == 1
    assert "is a policy of LeRobot (act); serve it with integrations/lerobot_policy_server" in capsys.readouterr().err
    (folder / "run" / "config.json").write_text("{")
    assert closed_loop.main(["--model", "run", *SHORT]) == 1
    assert "config.json is no JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: json.dumps({**json.loads(line), "success": "maybe"}),
        lambda line: json.dumps({**json.loads(line), "thoughts": 5}),
        lambda line: json.dumps({**json.loads(line), "call_seconds": ["long"]}),
        lambda line: json.dumps({name: value for name, value in json.loads(line).items() if name != "seed"}),
        lambda line: "[1, 2]",
    ],
    ids=["torn", "success", "thoughts", "seconds", "no seed", "no object"],
)
def test_a_damaged_row_is_counted_and_its_episode_runs_again(folder, capsys, caplog, damage):
    arguments = ["--model", "still", "--output", "run", "--episodes", "2", "--env-option", "max_steps=4", "--quiet"]
    assert closed_loop.main(arguments) == 0
    path = folder / "run" / "episodes.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{damage(first)}\n{second}\n")
    assert compare(["run", "run"]) == 0
    assert "of 1 paired episodes" in capsys.readouterr().out
    assert "run/episodes.jsonl: 1 lines cannot be read; their episodes count as not run" in caplog.text
    assert closed_loop.main(arguments) == 0
    assert path.read_text().splitlines()[1] == second
    assert len(path.read_text().splitlines()) == 3, "the damaged episode alone ran again"
    assert "lift: 0/2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "outputs/my/task"],
            "model: outputs/my/task is not a folder; expected a folder or Hub id of a checkpoint",
        ),
        (["--model", "/nowhere"], "model: /nowhere is not a folder"),
        (
            ["--model", "no.such/model"],
            "model: no.such/model is no folder here, and there is no such checkpoint to be had",
        ),
        (["--model", "data"], "model: data has no config.json, so it is no checkpoint"),
        (["--dtype", "float8"], "dtype: expected auto, float32, bfloat16 or float16, got 'float8'"),
        (["--dtype", "int64"], "dtype: expected auto, float32, bfloat16 or float16, got 'int64'"),
        (["--device", "gpu"], "device: expected cpu, cuda, cuda:1 or another of torch's, got 'gpu'"),
        (["--device", "cuda:99"], "device: cuda:99 was asked for, and torch"),
        (["--output", "file"], "output: file is a file; name a folder"),
        (["--data-root", "dtaa"], "data_root: no test-*.parquet for MME below dtaa/MME; put the dataset"),
        (["--tasks", "mmee"], "tasks: 'mmee' is unknown, expected any of docvqa"),
    ],
)
def test_each_is_one_clear_error_of_the_vision_language_command_too(folder, capsys, arguments, message):
    (folder / "file").write_text("")
    write_benchmarks("data", 2, tasks=["mme"])
    known = ["--model", str(ROOT / "checkpoints" / "tabletop-lift"), "--data-root", "data", "--tasks", "mme", "--quiet"]
    assert evaluate_vlm([*known, *arguments]) == 1
    error = capsys.readouterr().err
    assert f"syvla-eval-vlm: {message}" in error
    assert "Traceback" not in error
