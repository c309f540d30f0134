"""Two evaluations paired by seed: the exact test, the interval, what flipped, and what cannot be compared."""

import json

import pytest

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.closed_loop_result import write_summary
from syvla.evaluation.compare import compare, main, read_evaluation
from syvla.evaluation.episode_records import EpisodeRecord, append_record, fingerprint


def write_run(folder, outcomes, **settings):
    """A folder of `syvla-eval` with these outcomes of the seeds 0, 1, ..."""
    settings = {"env": "tabletop", "environment_options": {}, "policy": folder.name, **settings}
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"settings": settings}))
    for seed, success in enumerate(outcomes):
        if success is not None:
            record = EpisodeRecord("lift", seed, bool(success), fingerprint=fingerprint(settings))
            append_record(folder / "episodes.jsonl", record)
    return folder


def compared(tmp_path, a, b, **settings):
    return compare(
        read_evaluation(write_run(tmp_path / "a", a)), read_evaluation(write_run(tmp_path / "b", b, **settings))
    )


def test_mcnemars_test_is_the_textbooks(tmp_path):
    """10 flips, 9 of them one way: p = 2 (C(10,0) + C(10,1)) / 2^10 = 22 / 1024."""
    result = compared(tmp_path, [0] * 9 + [1] + [1] * 10, [1] * 9 + [0] + [1] * 10)
    assert result.p_value == pytest.approx(22 / 1024, abs=1e-12)
    assert (len(result.gained), result.lost) == (9, [("lift", 9)])
    assert result.difference == pytest.approx(8 / 20)
    assert [str(rate).split(" = ")[0] for rate in result.rates] == ["11/20", "19/20"]


def test_the_interval_covers_what_its_variance_says(tmp_path):
    """200 pairs, 60 gained and 20 lost: difference 0.2, standard error sqrt((0.4 - 0.04) / 200) = 0.0424."""
    result = compared(tmp_path, [0] * 60 + [1] * 20 + [1] * 120, [1] * 60 + [0] * 20 + [1] * 120)
    low, high = result.interval()
    assert (low, high) == result.interval()
    assert low == pytest.approx(0.2 - 1.96 * 0.0424, abs=0.008)
    assert high == pytest.approx(0.2 + 1.96 * 0.0424, abs=0.008)


def test_equal_outcomes_are_no_evidence(tmp_path):
    result = compared(tmp_path, [1, 0, 1], [1, 0, 1])
    assert (result.p_value, result.difference, result.interval()) == (1.0, 0.0, (0.0, 0.0))


def test_episodes_of_one_side_are_left_out_and_counted(tmp_path):
    result = compared(tmp_path, [1, 1, None, 0], [0, 1, 1, None])
    assert list(result.pairs) == [("lift", 0), ("lift", 1)]
    assert result.unpaired == 2
    assert "2 episodes are in one of the two only" in result.to_text()


def test_other_episodes_are_refused_and_other_settings_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="look: A has None and B has 'fast', so a seed is not the same episode in both"
    ):
        compared(tmp_path, [1], [1], look="fast")
    a, b = (read_evaluation(tmp_path / name) for name in "ab")
    b.settings.pop("look")
    assert compare(a, b).settings == {"policy": ("a", "b")}
    with pytest.raises(ValueError, match="share no episode"):
        compare(a, read_evaluation(write_run(tmp_path / "c", [None, 1])))


def test_command_compares_real_evaluations(tmp_path, capsys):
    for name in ("expert", "still"):
        options = {"environment_options": {"image_size": 8}, "progress": False, "output": tmp_path / name}
        write_summary(evaluate_closed_loop(name, episodes=3, **options), tmp_path / name / "summary.json")
    output = tmp_path / "comparison.json"
    assert main([str(tmp_path / "still"), str(tmp_path / "expert"), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "B - A: +100.0 points" in said
    assert "gained by B: lift, seed 1000002" in said
    assert json.loads(output.read_text())["mcnemar_p"] == 0.25
    assert main([str(tmp_path), str(tmp_path / "expert")]) == 1
    assert "no summary.json; expected the --output folder of a finished syvla-eval" in capsys.readouterr().err
