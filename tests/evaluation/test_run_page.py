"""The report of a run: bars, causes in order, thoughts as wide as they lasted, and commands that repeat an episode."""

import re
import shlex

from syvla.evaluation.closed_loop import build_parser, evaluate_closed_loop, main
from syvla.evaluation.closed_loop_result import ClosedLoopResult
from syvla.evaluation.episode_records import EpisodeRecord
from syvla.evaluation.run_page import replay_command, write_run_page


def result_of(records, **run):
    settings = {"env": "tabletop", "environment_options": {"max_steps": 9, "split": "ood"}, "replan_steps": 4}
    return ClosedLoopResult(records, settings, 1.0, {"policy": "ckpt", "control_hz": 10.0, **run})


def page_of(tmp_path, records, **run):
    write_run_page(result_of(records, **run), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_causes_come_most_frequent_first_and_text_is_escaped(tmp_path):
    records = [
        EpisodeRecord("lift", 1, True, 5),
        EpisodeRecord("lift", 2, False, 9, failure_reason="fell <off>"),
        EpisodeRecord("lift", 3, False, 9, failure_reason="time limit"),
        EpisodeRecord("place", 4, False, 9, failure_reason="time limit"),
        EpisodeRecord("place", 5, error="step: RuntimeError: broken"),
    ]
    text = page_of(tmp_path, records)
    order = [text.index(cause) for cause in ("time limit", "error: step: RuntimeError", "fell &lt;off&gt;")]
    assert order == sorted(order)
    row = text[text.index("time limit") : text.index("error: step: RuntimeError")]
    assert [name for name in ("lift 3", "place 4", "fell") if name in row] == ["lift 3", "place 4"]
    assert "--task place --episode 4" in row, "the command that runs it again, recorded or not"
    assert "#place-4" not in row, "without a recording nothing leads to one"
    assert "1/3 = 33.3%" in text
    assert "0/1 = 0.0%" in text
    assert "1 more ended in an error" in text


def test_thoughts_are_as_wide_as_they_lasted_and_lead_into_the_recording(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x")
    record = EpisodeRecord("lift", 7, True, 30, thoughts=[(0, "reach"), (12, "grasp <it>")], video="videos/a.mp4")
    gone = EpisodeRecord("lift", 8, True, 3, video="videos/b.mp4")
    text = page_of(tmp_path, [record, gone])
    assert re.findall(r'flex:(\d+) 1 0" data-seconds="([\d.]+)"', text) == [("12", "0.000"), ("18", "1.200")]
    assert "grasp &lt;it&gt;" in text
    assert 'src="videos/a.mp4"' in text
    assert "videos/b.mp4 is gone" in text
    failed = EpisodeRecord("lift", 9, False, 3, failure_reason="time limit", video="videos/a.mp4")
    text = page_of(tmp_path, [failed])
    assert text.index('<a href="#lift-9">recording</a>') < text.index('<figure id="lift-9">')


def test_the_replay_command_is_understood_and_means_the_same_episode():
    result = result_of([], policy_options={"think": True, "device": None, "dtype": "float32", "name": "x"})
    words = shlex.split(replay_command(result, EpisodeRecord("place", 1_000_007)))
    arguments = build_parser().parse_args(words[1:])
    assert (arguments.model, arguments.env, arguments.task) == ("ckpt", "tabletop", ["place"])
    assert (arguments.episode, arguments.replan_steps, arguments.think) == ([1_000_007], 4, True)
    assert dict(arguments.env_option) == {"max_steps": 9, "split": "ood"}
    served = replay_command(result_of([], policy="ws://h:1"), EpisodeRecord("place", 1_000_007))
    assert "--server ws://h:1" in served


def test_a_single_episode_runs_again_as_it_did(tmp_path, capsys):
    options = ["--env-option", "image_size=8", "--quiet", "--output", str(tmp_path / "one")]
    assert main(["--model", "expert", "--task", "lift", "--episode", "1000002", *options]) == 0
    whole = evaluate_closed_loop("expert", episodes=3, environment_options={"image_size": 8}, progress=False)
    text = (tmp_path / "one" / "report.html").read_text()
    assert "1/1 = 100.0%" in text
    again = evaluate_closed_loop("expert", only=[1_000_002], environment_options={"image_size": 8}, progress=False)
    assert [(r.seed, r.steps) for r in again.records] == [(r.seed, r.steps) for r in whole.records[2:]]
    assert main(["--model", "expert", "--task", "lift", "--episode", "5", *options]) == 1
    assert "only: expected environment seeds from 1000000 on, got [5]" in capsys.readouterr().err
