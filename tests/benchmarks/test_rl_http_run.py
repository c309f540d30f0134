"""What is reported of runs over HTTP, from the files that the processes leave."""

import json

import pytest

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from benchmarks.rl_http_run import Plan, main, report
from syvla.durable_files import write_json
from syvla.serving.rl.published_policies import POLICY_FILE


def plan_in(folder, **options):
    return Plan(folder / "policy", folder / "value", folder / "data", folder / "runs", **options)


def leave_run(plan, seed):
    """An update that trains the value model alone, a refused one and a published one."""
    folder = plan.folder(seed)
    hashes = ["first", "first", "last"]
    for version, policy_version in enumerate(hashes):
        facts = {"version": version, "policy_version": policy_version}
        write_json(folder / "run" / "policies" / f"v{version:04d}" / POLICY_FILE, facts)
    update = {"steps": 40, "objective/success_rate": 0.5, "policy/cfm_heldout": 0.1}
    update["objective/advantage_rollout_mean"] = -0.25
    history = [
        {**update, "update": 0, "version": 1, "refused": None},
        {**update, "update": 1, "version": 1, "refused": "held-out loss", "policy/stopped_by_kl": 1.0, "steps": 3},
        {**update, "update": 2, "version": 2, "refused": None},
    ]
    write_json(folder / "run" / "rl_history.json", history)
    write_json(folder / "run" / "training_args.json", {"learning_rate": 0.5, "seed": seed})
    write_json(folder / "robot.json", {"rollouts": 6, "success": {"0": [2, 4], "2": [1, 2]}, "episodes": []})
    events = [{"time": 100.0, "event": "begin"}, {"time": 700.0, "event": "reward"}]
    (folder / "run" / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    leave_measurement(plan.measurement(folder / "run" / "policies" / "v0002", folder / "evaluation" / "v0002"), 8)


def leave_measurement(job, successes):
    total = {"successes": successes, "episodes": 10}
    write_json(job.result_path, {"arguments": list(job.arguments), "seconds": 1.0, "summary": {"total": total}})


def test_a_report_counts_every_policy_once_and_says_what_was_refused(tmp_path):
    plan = plan_in(tmp_path, seeds=(0, 3))
    leave_measurement(plan.measurement(plan.policy, plan.output / "before"), 4)
    for seed in plan.seeds:
        leave_run(plan, seed)
    path = report(plan, tmp_path / "results")
    content = json.loads(path.read_text())
    assert [content[when][key] for when in ("before", "after") for key in ("successes", "episodes")] == [4, 10, 16, 20]
    assert [run["seconds"] for run in content["runs"]] == [600, 600]
    assert [v["successes"] for v in content["runs"][0]["versions"]] == [4, 4, 8]
    assert content["settings"]["learning_rate"] == 0.5
    text = path.with_suffix(".md").read_text()
    assert "| 2 | 0.50 | -0.25 | 3, stopped by the KL | 0.1000 | refused (held-out loss) | 4/10 = 40%" in text
    assert "| 3 | 0.50 | -0.25 | 40 | 0.1000 | v2 | 8/10 = 80%" in text


def test_robots_of_different_seeds_share_no_start(tmp_path):
    plan = plan_in(tmp_path, seeds=(0, 1))
    starts = [int(words[words.index("--seed") + 1]) for words in (plan.commands(s)["robot"] for s in plan.seeds)]
    assert starts[1] - starts[0] > 10 * plan.updates * plan.rollouts


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path, capsys):
    assert main(["--policy", str(tmp_path / "none"), "--output", str(tmp_path)]) == 1
    assert (
        f"{tmp_path / 'none'}: no such folder; make it with: python -m benchmarks.rl_ablation"
        in capsys.readouterr().err
    )
