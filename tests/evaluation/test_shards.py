"""An evaluation in parts is the evaluation that ran whole; parts that do not belong together are refused."""

import json
import shutil

import pytest
import reach_environment
from reach_environment import Walker

from syvla.evaluation import closed_loop
from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.closed_loop_result import write_summary
from syvla.evaluation.episode_records import EpisodeRecord
from syvla.evaluation.shards import Shard, merge_shards

reach_environment.register()

EPISODES = 5


def outcomes(result):
    timed = {"call_seconds", "latency"}
    return [{key: value for key, value in r.to_dict().items() if key not in timed} for r in result.records]


def evaluate(output, policy=None, **options):
    options = {"episodes": EPISODES, "tasks": ["near", "far"], **options}
    result = evaluate_closed_loop(policy or Walker(), "reach", output=output, progress=False, **options)
    write_summary(result, output / "summary.json")
    return result


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of an evaluation of 10 episodes in three parts; the first episode of each task is recorded."""
    root = tmp_path_factory.mktemp("parts")
    for index in (1, 2, 3):
        evaluate(root / str(index), shard=f"{index}/3", video_episodes=1)
    return root


@pytest.fixture
def copies(parts, tmp_path):
    shutil.copytree(parts, tmp_path / "parts")
    return [tmp_path / "parts" / str(index) for index in (1, 2, 3)]


def change(folder, edit):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    edit(summary)
    path.write_text(json.dumps(summary))


def test_parts_together_are_the_whole(parts, tmp_path):
    whole = evaluate(tmp_path / "whole", video_episodes=1)
    sizes = [len((parts / str(index) / "episodes.jsonl").read_text().splitlines()) for index in (1, 2, 3)]
    assert sizes == [4, 3, 3]
    merged = merge_shards([parts / "3", parts / "1", parts / "2"], tmp_path / "merged")
    assert outcomes(merged) == outcomes(whole)
    assert merged.settings == whole.settings
    assert {name: str(rate) for name, rate in merged.by_task.items()} == {
        name: str(rate) for name, rate in whole.by_task.items()
    }
    assert [part["shard"] for part in merged.run["merged"]] == ["1/3", "2/3", "3/3"]
    films = [record.video for record in merged.records if record.video]
    assert len(films) == 2
    for film in films:
        assert (tmp_path / "merged" / film).read_bytes()


def test_the_commands_do_the_same_and_the_merge_goes_on_as_an_evaluation(tmp_path, capsys):
    base = ["--model", "expert", "--env", "reach", "--task", "near", "--episodes", "3", "--quiet"]
    for index in (1, 2):
        assert closed_loop.main([*base, "--shard", f"{index}/2", "--output", str(tmp_path / f"shard_{index}")]) == 0
    folders = [str(tmp_path / "shard_1"), str(tmp_path / "shard_2")]
    capsys.readouterr()
    assert closed_loop.main(["--merge", *folders, "--output", str(tmp_path / "all")]) == 0
    assert "near: 3/3" in capsys.readouterr().out
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert summary["total"]["episodes"] == 3
    assert (tmp_path / "all" / "report.html").is_file()
    before = (tmp_path / "all" / "episodes.jsonl").read_text()
    assert closed_loop.main([*base, "--output", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "episodes.jsonl").read_text() == before, "nothing is run again"
    assert closed_loop.main(["--merge", *folders, "--output", str(tmp_path / "all")]) == 1
    assert "has an evaluation already" in capsys.readouterr().err


def test_missing_and_doubled_parts_are_named(copies, tmp_path):
    with pytest.raises(ValueError, match=r"shards \[2\] of 3 are missing"):
        merge_shards([copies[0], copies[2]], tmp_path / "out")
    with pytest.raises(ValueError, match=r"shards \[2\] of 3 came more than once"):
        merge_shards([copies[0], copies[1], copies[1]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_that_was_not_finished_is_named(copies, tmp_path):
    records = copies[1] / "episodes.jsonl"
    lost = json.loads(records.read_text().splitlines()[-1])
    records.write_text("".join(line + "\n" for line in records.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match=rf"shard 2/3 lacks {lost['task']}, seed {lost['seed']}; run it again"):
        merge_shards(copies, tmp_path / "out")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda s: s["settings"].update(noise=0.5), "settings.noise"),
        (lambda s: s["settings"].update(replan_steps=2), "settings.replan_steps"),
        (lambda s: s["run"].update(seed=1), "seed"),
        (lambda s: s["run"].update(tasks=["near"]), "tasks"),
        (lambda s: s["run"]["environment"].update(physics="another"), "environment"),
        (lambda s: s["run"]["versions"].update(mujoco="2.0"), "version of mujoco"),
        (lambda s: s["run"]["shard"].update(part="2/4"), "number of shards"),
        (lambda s: s["run"]["shard"].update(seeds=[1_000_000]), "episodes of the whole"),
    ],
)
def test_parts_of_another_evaluation_are_refused(copies, tmp_path, edit, named):
    change(copies[1], edit)
    with pytest.raises(ValueError, match=rf"{named}: .*1 has .* and .*2 has .*not parts of one"):
        merge_shards(copies, tmp_path / "out")


def test_another_python_is_no_obstacle(copies, tmp_path):
    change(copies[1], lambda summary: summary["run"]["versions"].update(python="3.99"))
    assert len(merge_shards(copies, tmp_path / "out").records) == 10


def test_whole_evaluations_and_other_folders_are_no_parts(tmp_path):
    evaluate(tmp_path / "whole", policy="expert", tasks="near", episodes=1)
    with pytest.raises(ValueError, match="is no part of an evaluation"):
        merge_shards([tmp_path / "whole"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no summary\.json"):
        merge_shards([tmp_path], tmp_path / "out")


def test_crashed_episodes_stay_errors(tmp_path):
    options = {"crash_at": "reset", "crash_seeds": (1_000_001,)}
    for index in (1, 2):
        settings = {"environment_options": options, "shard": f"{index}/2", "tasks": "near", "episodes": 4}
        evaluate(tmp_path / str(index), policy="expert", **settings)
    merged = merge_shards([tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    assert [record.seed for record in merged.errors] == [1_000_001]
    assert (merged.total.successes, merged.total.episodes) == (3, 3)


def test_a_record_cannot_name_a_recording_elsewhere(copies, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    records = copies[0] / "episodes.jsonl"
    entries = [json.loads(line) for line in records.read_text().splitlines()]
    entries[0]["video"] = "../../secret.mp4"
    records.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    merge_shards(copies, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("secret*"))
    assert EpisodeRecord.from_dict(entries[0]).video


@pytest.mark.parametrize("text", ["", "2", "0/8", "9/8", "1/0", "-1/8", "1/8/2"])
def test_other_shards_are_refused(text):
    with pytest.raises(ValueError, match=r"expected K/N .* such as 2/8"):
        Shard.parse(text)


def test_parts_without_episodes_are_refused():
    with pytest.raises(ValueError, match="shard: 1/4 of 3 episodes"):
        Shard(1, 4).take([1, 2, 3])
    assert [Shard(index, 3).take(list("abcdefgh")) for index in (1, 2, 3)] == [list("adg"), list("beh"), list("cf")]
