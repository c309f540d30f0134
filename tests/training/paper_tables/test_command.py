"""`syvla-tables`: exact commands, runs that are not repeated, and tables that say at what scale they were measured."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
import yaml

from syvla.durable_files import write_json
from syvla.evaluation.published_tables import PAPER_TABLES
from syvla.evaluation.success_rate import wilson_interval
from syvla.modeling_syvla import SyVLAConfig
from syvla.modeling_syvla.intention_decoupling import decoupling_mask
from syvla.training.paper_tables import command as paper_tables
from syvla.training.paper_tables.command import jobs_of, main
from syvla.training.paper_tables.full_scale import FullScale
from syvla.training.paper_tables.jobs import Job
from syvla.training.paper_tables.plans import ARMS, PLANS, distinct_quantile, masked_queries
from syvla.training.paper_tables.results import rate_cell
from syvla.training.paper_tables.tiny_scale import TinyScale
from syvla.training.rl_run import main as rl_command

MICRO = ["--demonstrations", "2", "--chats", "10", "--rows", "4", "--base-steps", "1", "--train-steps", "1"]


def printed(capsys, *argv):
    assert main(list(argv)) == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------------- plans


def test_every_row_of_every_table_is_a_run_or_says_why_not():
    assert PLANS.keys() == PAPER_TABLES.keys()
    for number, plan in PLANS.items():
        covered = {*plan.rows, *plan.not_run}
        others = {"1": 6, "2": 5}.get(number, 0)  # rows of other projects' models
        assert covered <= set(PAPER_TABLES[number].rows)
        assert len(PAPER_TABLES[number].rows) - len(covered) == others, number
        assert set(plan.arms) <= ARMS.keys()


@pytest.mark.parametrize("count", [5, 8, 20, 30])
@pytest.mark.parametrize("percent", [0, 3, 5, 8, 10, 15, 20])
def test_masked_queries_are_those_of_the_mask(count, percent):
    norms = torch.rand(16, count, generator=torch.Generator().manual_seed(percent))
    masked = (~decoupling_mask(norms, percent / 100)).sum(-1)
    assert masked.unique().tolist() == [masked_queries(percent / 100, count)]


def test_quantiles_that_mask_the_same_states_are_one_run():
    """At N = 20: 3% and 5% mask one state, 8% and 10% two; at N = 100 all rows differ."""
    norms = torch.rand(64, 20, generator=torch.Generator().manual_seed(0))
    for one, other in ((0.03, 0.05), (0.08, 0.10)):
        assert torch.equal(decoupling_mask(norms, one), decoupling_mask(norms, other))
    rows = [distinct_quantile(q) for q in (0, 3, 5, 8, 10, 15, 20)]
    assert rows == ["without_decoupling", "all", "all", "quantile_10", "quantile_10", "quantile_15", "quantile_20"]
    assert len({distinct_quantile(q, count=100) for q in (0, 3, 5, 8, 10, 15, 20)}) == 7


def test_arms_change_only_fields_that_the_model_has():
    config = SyVLAConfig.tiny()
    for name, arm in ARMS.items():
        assert all(hasattr(config, key) for key in arm.overrides), name
        SyVLAConfig.tiny(**arm.overrides)


# ---------------------------------------------------------------------- commands


def test_list_shows_the_commands_and_runs_none(tmp_path, capsys):
    text = printed(capsys, "5", "--scale", "tiny", "--list", "--seeds", "3", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    lines = text.splitlines()
    assert lines[0] == f"# Table 5, {TinyScale.label}"
    trained = [shlex.split(line) for line in lines if line.startswith("syvla-finetune") and "/runs/" in line]
    counts = [words[words.index("--num_query_tokens") + 1] for words in trained if "--num_query_tokens" in words]
    assert counts == ["5", "10", "15", "25", "30"]
    assert all(words[words.index("--seed") + 1] == "3" for words in trained)
    measured = [line for line in lines if line.startswith("syvla-eval ")]
    assert len(measured) == len(trained) == 6
    assert all("--think" in line and "--episodes 60" in line for line in measured)


def test_the_commands_are_understood_by_what_they_call(tmp_path, capsys):
    """Recipes, options and data specifications of every arm at both scales, parsed by finetune.py's own parser."""
    from syvla.training.run.arguments import DataArguments, ModelArguments, SyVLATrainingArguments
    from syvla.training.run.recipe import parse_recipe

    types = (ModelArguments, DataArguments, SyVLATrainingArguments)
    full = FullScale(tmp_path, model_path="org/syvla-3b", multimodal_datasets=["a.jsonl", "b.jsonl"])
    for scale in (TinyScale(tmp_path), full):
        for name, arm in ((name, arm) for name, arm in ARMS.items() if arm.rl is None):
            job = scale.train(name, 7, "ablation")
            model, data, args = parse_recipe(types, [*job.arguments, "--use_cpu", "true", "--bf16", "false"])
            assert json.loads(model.model_overrides) == dict(arm.overrides)
            assert model.num_query_tokens == arm.options.get("num_query_tokens")
            assert data.ignore_thoughts == arm.options.get("ignore_thoughts", False)
            assert data.multimodal_share == arm.options.get("multimodal_share", 0.3)
            assert data.robot_specs[0]["embodiment"] == "tabletop"
            assert args.seed == 7
            assert args.output_dir == str(job.output)
    assert len(data.multimodal_specs) == 2


def test_the_evaluation_commands_are_understood(tmp_path):
    from syvla.evaluation.closed_loop import build_parser

    for measures in ("ablation", "tasks"):
        for job in TinyScale(tmp_path).measure("without_thoughts", 0, measures).values():
            arguments = build_parser().parse_args(list(job.arguments))
            assert arguments.output == job.output
            assert not arguments.think, "trained without thoughts, measured without"
    assert (
        build_parser().parse_args(list(TinyScale(tmp_path).measure("all", 0, "ablation")["ablation"].arguments)).think
    )


def test_full_scale_is_accelerate_launch_and_says_what_it_needs(tmp_path, capsys):
    text = printed(capsys, "4", "--list", "--model-path", "org/syvla-3b", "--output", str(tmp_path))
    assert "# needs --multimodal-datasets" in text
    assert "--model-path" not in text
    launched = [line for line in text.splitlines() if line.startswith("accelerate launch --config_file")]
    assert len(launched) == 5
    assert all(
        "training/finetune.py --config training/recipes/finetune.yaml --model_path org/syvla-3b" in x for x in launched
    )
    assert '"decoupling_quantile": 0.2}' in text
    assert main(["4", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "table 4 at full scale needs:\n- --model-path: a pretrained SyVLA" in error
    assert "- --multimodal-datasets" in error


def test_the_commands_work_from_any_folder(tmp_path, capsys, monkeypatch):
    from syvla.training.run.recipe import shipped_path

    monkeypatch.chdir(tmp_path)
    lines = printed(capsys, "10", "--list", "--model-path", "org/syvla-3b").splitlines()
    launched = [shlex.split(line) for line in lines if line.startswith("accelerate launch")]
    assert len(launched) == 3, "a run, and a value model for each task"
    for words in launched:
        assert all(paper_tables.Path(word).is_file() for word in words[3:5]), words[3:5]
    recipes = {words[words.index("--config") + 1] for words in map(shlex.split, lines) if "--config" in words}
    assert recipes == {"training/recipes/finetune.yaml", "training/recipes/tables/rl.yaml"}
    assert all(shipped_path(name).is_file() for name in recipes)


def test_libero_whose_demonstrations_have_no_thoughts_is_measured_without(tmp_path, capsys):
    given = ("--model-path", "m", "--libero-datasets", "d", "--output", str(tmp_path))
    measured = [line for line in printed(capsys, "8", "--list", *given).splitlines() if line.startswith("syvla-eval ")]
    assert len(measured) == 1
    assert measured[0].count("--task libero_") == 40
    assert "--think" not in measured[0]
    assert "--think" in printed(capsys, "6", "--list", "--model-path", "m", "--output", str(tmp_path))


def test_tables_that_cannot_run_say_why(tmp_path, capsys):
    assert main(["8", "--scale", "tiny", "--output", str(tmp_path)]) == 1
    assert "table 8 at tiny scale needs:\n- --scale full" in capsys.readouterr().err
    assert main(["12", "--output", str(tmp_path)]) == 1
    assert "expected one of 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, got '12'" in capsys.readouterr().err
    assert main(["4", "--arms", "everything", "--output", str(tmp_path)]) == 1
    assert "--arms: expected any of without_decoupling, all, quantile_10" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ["3", "10", "11"])
@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_the_commands_of_rl_are_understood_by_what_they_call(tmp_path, number, scale):
    from syvla.training.retrieval.encode_dataset import build_parser as encode_parser
    from syvla.training.rl_run import parse_run
    from syvla.training.run.recipe import parse_recipe
    from syvla.training.value_warmup import ValueArguments, ValueTrainingArguments

    made = TinyScale(tmp_path) if scale == "tiny" else FullScale(tmp_path, "org/syvla-3b", multimodal_datasets=["a"])
    plan, made_before, rl = PLANS[number], {tmp_path / "tiny/flow/base"}, []
    for job in jobs_of(plan, made, [5], plan.arms):
        words = list(job.arguments)
        if job.module == "syvla.training.value_warmup":
            values, args = parse_recipe((ValueArguments, ValueTrainingArguments), [*words, "--use_cpu", "true"])
            assert paper_tables.Path(values.policy_path) in made_before
            assert (values.decision_steps, args.seed) == (4 if scale == "tiny" else 10, 5)
        elif job.module == "syvla.training.retrieval.encode_dataset":
            assert paper_tables.Path(encode_parser().parse_args(words).policy_path) in made_before
        elif job.module == "syvla.training.rl_run":
            run = parse_run(words)
            assert (run.updates, run.rollouts, run.seed) == (*made.budget, 5)
            options = dict(pairwise(run.trainer))
            needs = ["--model_path", "--value_model_path", *(["--retrieval_path"] if "--encoder" in options else [])]
            assert {paper_tables.Path(options[name]) for name in needs} <= made_before
            assert json.loads(options["--robot_datasets"])["path"] in map(str, made_before)
            rl.append((run.task, run.think, options.get("--expert_mode"), options.get("--expert_advantages")))
        made_before.add(job.output)
    task = "lift" if scale == "tiny" else "calculating"
    expected = {
        "3": [
            (task, False, None, None),
            (task, True, None, None),
            (task, True, "none", None),
            (task, True, "random", None),
            (task, True, None, "gae"),
            (task, True, None, None),
            (task, True, None, None),
        ],
        "10": [(task, True, mode, None) for task in ("calculating", "bagging") for mode in ("random", None)],
        "11": [(task, True, None, None)],
    }
    assert rl == expected[number]


def test_full_scale_is_the_papers_budget():
    recipe = yaml.safe_load((paper_tables.Path("training/recipes/tables/rl.yaml")).read_text())
    assert FullScale.rl_budget == (recipe["max_rl_updates"], recipe["rollouts_per_update"]) == (10, 20)


def test_table_10_has_a_run_for_each_column_and_table_11_says_what_is_not_ours(tmp_path, capsys):
    scale = TinyScale(tmp_path)
    for task, successes in (("calculating", 12), ("bagging", 18)):
        finish(scale, "rl_similar", 0, [successes], task)
    finish(scale, "rl_random", 0, [6], "bagging")
    text = printed(capsys, "10", "--scale", "tiny", "--report", "--output", str(tmp_path))
    content = json.loads((tmp_path / "tiny" / "table_10.json").read_text())
    assert content["ours"]["SyVLA"]["Task 2"]["value"] == pytest.approx(0.2)
    assert content["ours"]["SyVLA"]["Task 3"]["value"] == pytest.approx(0.3)
    assert content["ours"]["w/o Similar Retrieval"].keys() == {"Task 3"}
    assert "RL: 2 updates of 16 rollouts (the paper: at most 10 of 20)" in text
    text = printed(capsys, "11", "--scale", "tiny", "--report", "--output", str(tmp_path))
    assert "| Pi-RL | 0.714 | not reimplemented |" in text


def test_what_goes_on_from_a_policy_is_made_anew_with_it(tmp_path):
    scale = TinyScale(tmp_path)
    gone = scale.train("all", 0, "calculating").makes_stale
    for arm in ("all", "rl_similar", "rl_none", "more_demonstrations"):
        assert scale.run_folder(arm, 0, "calculating") in gone
    for arm, seed in (("rl_without_decoupling", 0), ("rl_similar", 1)):
        assert scale.run_folder(arm, seed, "calculating") not in gone


def test_an_empty_report_prints_the_paper_and_the_scale(tmp_path, capsys):
    for number in PAPER_TABLES:
        for scale in (TinyScale, FullScale):
            text = printed(capsys, number, "--scale", scale.name, "--report", "--output", str(tmp_path))
            assert text.startswith(f"## Table {number}")
            assert f"ours ({scale.label})" in text or number in ("1", "2", "9", "10")
            assert f"Scale of our column: {scale.label}" in text
            content = json.loads((tmp_path / scale.name / f"table_{number}.json").read_text())
            assert content["scale"] == scale.label
            assert content["seeds"] == []


# ---------------------------------------------------------------------- jobs


@pytest.fixture
def job(tmp_path):
    """A job that writes a file, by the real command line of the recipes' data."""
    output = tmp_path / "synthetic"
    arguments = ("--output", str(output), "--rows", "4", "--train-rows", "5")
    return Job("syvla.evaluation.vlm_benchmarks.synthetic_data", arguments, output)


def test_a_finished_job_is_not_run_again_and_a_half_finished_one_is(job):
    first = job.run()
    chats = job.output / "train" / "chats.jsonl"
    chats.write_text("touched")
    assert job.run() == first
    assert chats.read_text() == "touched", "its result was there"
    job.result_path.unlink()  # as if it had been killed before the result was written
    (job.output / "half.written").write_text("")
    job.run()
    assert chats.read_text() != "touched"
    assert not (job.output / "half.written").exists(), "started anew, not on top"


def test_the_result_of_other_settings_is_not_taken(job):
    job.run()
    other = Job(job.module, tuple("6" if word == "5" else word for word in job.arguments), job.output)
    with pytest.raises(ValueError, match=r"other settings \(they differ in 5, 6\); remove it"):
        other.run()


def test_a_failing_job_leaves_no_result(tmp_path, capsys):
    for words in (("--rows", "0"), ("--nonsense",)):
        job = Job(
            "syvla.evaluation.vlm_benchmarks.synthetic_data", ("--output", str(tmp_path / "x"), *words), tmp_path / "x"
        )
        with pytest.raises(RuntimeError, match="ended with exit status"):
            job.run()
        assert job.result is None


# ---------------------------------------------------------------------- results


def finish(scale, arm, seed, successes, measures="ablation"):
    """Writes what a finished run leaves."""
    training = scale.train(arm, seed, measures)
    write_json(training.result_path, {"arguments": list(training.arguments), "seconds": 1.0})
    for job in scale.measure(arm, seed, measures).values():
        tasks = [job.arguments[i + 1] for i, word in enumerate(job.arguments) if word == "--task"]
        counts = {task: {"successes": successes[i], "episodes": 60} for i, task in enumerate(tasks)}
        write_json(job.result_path, {"arguments": list(job.arguments), "seconds": 1.0, "summary": {"tasks": counts}})


def test_a_report_gathers_seeds_and_shared_runs(tmp_path, capsys):
    scale = TinyScale(tmp_path)
    for seed, successes in ((0, 30), (1, 36)):
        finish(scale, "all", seed, [successes])
    finish(scale, "quantile_20", 0, [12])
    text = printed(capsys, "4", "--scale", "tiny", "--report", "--seeds", "0", "1", "2", "--output", str(tmp_path))
    content = json.loads((tmp_path / "tiny" / "table_4.json").read_text())
    assert content["seeds"] == [0, 1]
    expected = rate_cell([[{"successes": 30, "episodes": 60}], [{"successes": 36, "episodes": 60}]])
    assert expected.value == pytest.approx(0.55)
    assert content["ours"]["3%"] == content["ours"]["5%"], "one run, two rows"
    assert content["ours"]["5%"]["Success"]["value"] == pytest.approx(0.55)
    assert content["ours"]["5%"]["Success"]["wilson_interval"] == list(expected.wilson)
    assert content["ours"]["20%"]["Success"]["seed_interval"] is None
    assert "0%" not in content["ours"]
    assert f"| **5%** | 0.86 | {expected.text()} |" in text
    assert content["command"] == "syvla-tables 4 --scale tiny --seeds 0 1"
    written = (tmp_path / "tiny" / "table_4.md").read_text()
    assert str(tmp_path) not in json.dumps(content) + written, "a result that is committed names no path of a machine"


def test_benchmarks_of_table_9_stand_beside_the_success_of_the_same_checkpoints(tmp_path, capsys):
    scale = TinyScale(tmp_path)
    columns = {"docvqa": "DocVQA", "ai2d": "AI2D", "mmmu": "MMMU", "mme": "MME", "hallusionbench": "HallBench"}
    for seed in (0, 1):
        finish(scale, "without_both", seed, [15 + 6 * seed])
        job = scale.measure("without_both", seed, "benchmarks")["benchmarks"]
        scores = {
            name: {"column": column, "score": 10.0 * i + seed, "rows": 4, "unparsable": 0.5}
            for i, (name, column) in enumerate(columns.items())
        }
        write_json(
            job.result_path, {"arguments": list(job.arguments), "seconds": 1.0, "summary": {"benchmarks": scores}}
        )
    text = printed(capsys, "9", "--scale", "tiny", "--report", "--seeds", "0", "1", "--output", str(tmp_path))
    assert "synthetic stand-ins" in text
    ours = json.loads((tmp_path / "tiny" / "table_9.json").read_text())["ours"]["w/o Both"]
    assert [ours[column]["value"] for column in columns.values()] == [0.5, 10.5, 20.5, 30.5, 40.5]
    assert ours["AI2D"]["wilson_interval"] == pytest.approx([100 * end for end in wilson_interval(0 + 0, 8)]), (
        "10 and 11% of 4"
    )
    assert ours["MME"]["wilson_interval"] is None
    rate = rate_cell([[{"successes": 15, "episodes": 60}], [{"successes": 21, "episodes": 60}]])
    assert f"Success of the same checkpoints on the task of Table 4: w/o Both {rate.text()}." in text
    listed = printed(capsys, "9", "--scale", "tiny", "--list", "--output", str(tmp_path))
    assert sum(line.startswith("syvla-eval ") for line in listed.splitlines()) == 4
    assert sum(line.startswith("syvla-eval-vlm ") for line in listed.splitlines()) == 4


def test_tables_of_three_tasks_average_and_deviate(tmp_path, capsys):
    scale = TinyScale(tmp_path)
    for seed, successes in ((0, (30, 24, 12)), (1, (36, 24, 18))):
        finish(scale, "all", seed, successes, "tasks")
    argv = ("--scale", "tiny", "--report", "--seeds", "0", "1", "--output", str(tmp_path))
    printed(capsys, "1", *argv)
    ours = json.loads((tmp_path / "tiny" / "table_1.json").read_text())["ours"]["SyVLA"]
    assert ours["ID Task 2"]["value"] == pytest.approx(0.4)
    assert ours["ID Average"]["value"] == pytest.approx((66 + 78) / 360)
    assert ours["OoD Task 3"]["value"] == pytest.approx(0.25)
    assert ours["OoD Average"]["value"] == pytest.approx((66 + 78) / 360)
    printed(capsys, "6", *argv)
    six = json.loads((tmp_path / "tiny" / "table_6.json").read_text())["ours"]
    assert six["Fold Shirt"]["Standard deviation"]["value"] == pytest.approx(0.1 / 2**0.5)
    assert six["Calculating"]["Standard deviation"]["value"] == 0


def test_our_table_7_recipe_is_what_full_scale_trains_with():
    recipe = yaml.safe_load((paper_tables.Path("training/recipes/finetune.yaml")).read_text())
    assert recipe["learning_rate"] == 3.0e-5


@pytest.mark.slow
def test_one_arm_end_to_end_and_not_twice(tmp_path, capsys):
    """From nothing to a table in a few steps of training: recording, chats, base, run, closed loop, report."""
    argv = ["4", "--scale", "tiny", "--arms", "quantile_20", "--episodes", "2", *MICRO, "--output", str(tmp_path)]
    assert main(argv) == 0
    table = capsys.readouterr().out
    assert f"ours ({TinyScale.label})" in table
    content = json.loads((tmp_path / "tiny" / "table_4.json").read_text())
    changed = "--train-steps 1 --episodes 2 --demonstrations 2 --base-steps 1 --chats 10 --rows 4"
    assert content["command"] == f"syvla-tables 4 --scale tiny --seeds 0 {changed}"
    (run,) = content["runs"]
    assert (run["arm"], run["seed"]) == ("quantile_20", 0)
    assert run["results"]["ablation"]["lift"]["episodes"] == 2
    config = json.loads((tmp_path / "tiny/runs/two_objects/quantile_20/seed0/checkpoint/config.json").read_text())
    assert (config["decoupling_quantile"], config["num_query_tokens"]) == (0.2, 20)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".jsonl")}
    assert main(argv) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}, "nothing was made again"
    run_folder = tmp_path / "tiny/runs/two_objects/quantile_20/seed0"
    (run_folder / "checkpoint.json").unlink()
    assert main(argv) == 0
    made_again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert {path.name for path in made_again} == {"model.safetensors", "episodes.jsonl"}
    assert all(path.is_relative_to(run_folder) for path in made_again), "the base stayed"


@pytest.mark.slow
def test_an_rl_row_end_to_end_killed_once_and_not_run_twice(tmp_path, capsys, caplog):
    """Table 11 from nothing: server, robot, trainer and closed loop. kill -9 of it all, a server that cannot start, the end."""
    pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")
    sizes = ["--rl-updates", "1", "--rl-rollouts", "2", "--rl-steps", "2", "--rollout-steps", "8", "--value-steps", "1"]
    argv = ["11", "--scale", "tiny", "--episodes", "2", *MICRO, *sizes, "--output", str(tmp_path)]
    listed = printed(capsys, *argv, "--list", "--arms", "rl_similar").splitlines()
    run = tmp_path / "tiny/runs/two_objects/rl_similar_lift/seed0/checkpoint"

    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen(
            [sys.executable, "-m", "syvla.training.paper_tables.command", *argv, "--arms", "rl_similar"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    journal, until = run / "journal.jsonl", time.monotonic() + 400
    while not (journal.is_file() and "begin" in journal.read_text()):
        assert first.poll() is None, (tmp_path / "first.log").read_text()[-4000:]
        assert time.monotonic() < until
        time.sleep(0.05)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    said = (tmp_path / "first.log").read_text().splitlines()

    job = TinyScale(tmp_path, 1, 2, 2, 1, 2, 2, 8, 1, base_steps=1, chats=10, rows=4).train("rl_similar", 0, "ablation")
    assert job.shell() in said, "the process was killed in the job of RL"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert rl_command([*job.arguments, "--port", str(taken.getsockname()[1])]) == 1
    error = capsys.readouterr().err
    assert "syvla-rl: error: server: the process ended (exit status 1)" in error
    assert "cannot listen there" in error, "the end of its log"

    caplog.set_level("INFO", logger="syvla.training.paper_tables.jobs")
    table = printed(capsys, *argv, "--arms", "rl_similar")
    assert "| Pi-RL | 0.714 | not reimplemented |" in table
    (entry,) = json.loads((tmp_path / "tiny" / "table_11.json").read_text())["runs"]
    assert (entry["arm"], entry["results"]["ablation"]["lift"]["episodes"]) == ("rl_similar", 2)
    assert (entry["rl"]["updates"], entry["rl"]["rollouts"], entry["rl"]["history"][0]["steps"]) == (1, 2, 2)
    ran = [line for line in said if line in listed]
    again = [record.getMessage() for record in caplog.records if record.name == "syvla.training.paper_tables.jobs"]
    assert ran[-1] == again[0] == job.shell()
    assert [*ran, *again[1:]] == listed[1 : 1 + len(ran) + len(again) - 1], "what is listed is what is run"

    caplog.clear()
    printed(capsys, *argv, "--arms", "rl_similar")
    assert not [record for record in caplog.records if record.name == "syvla.training.paper_tables.jobs"]
