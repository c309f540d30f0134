"""Odd episodes, copies and statistics of recordings whose faults are known."""

import re

import numpy as np
import pytest
from dataset_recordings import features
from rl_robot import until

from syvla.processing.annotation.annotator import Annotator
from syvla.processing.annotation.episode_data import EpisodeData
from syvla.processing.annotation.look_command import main
from syvla.processing.annotation.overview import odd_ones, overview_of
from syvla.processing.recording.robot_dataset_writer import RobotDatasetWriter

FPS = 10
LENGTHS = [30] * 9 + [90, 30, 30, 30]
LONG, SPIKE, COPY, NEAR, BLANK = 9, 4, 10, 11, 12


def motion(episode, length):
    """(T, 3) states and (T, 2) actions; episode 10 repeats 1, and 11 repeats 2 with a little noise."""
    source = {COPY: 1, NEAR: 2}.get(episode, episode)
    rng = np.random.default_rng(source)
    phase = rng.uniform(0, 6, 3) + np.linspace(0, 4 * length / 30, length)[:, None] * rng.uniform(0.8, 1.2, 3)
    states = np.sin(phase)
    if episode == NEAR:
        states += 0.002 * np.random.default_rng(99).normal(size=states.shape)
    actions = 0.5 * states[:, :2]
    if episode == SPIKE:
        actions[12, 1] = 7.0
    return states.astype(np.float32), actions.astype(np.float32)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    root = tmp_path_factory.mktemp("look") / "faulty"
    with RobotDatasetWriter(root, fps=FPS, features=features(), use_videos=False, thoughts=True) as writer:
        for episode, length in enumerate(LENGTHS):
            states, actions = motion(episode, length)
            for step in range(length):
                rng = np.random.default_rng(1000 * episode + step)
                picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                if episode == BLANK:
                    picture[:] = 0
                values = {"observation.state": states[step], "action": actions[step]}
                pictures = {f"observation.images.{name}": picture for name in ("head", "left_wrist")}
                thought = "wave <b>slowly</b>" if episode == 0 else None
                writer.add_frame({**values, **pictures}, f"wave & wait {episode % 2}", thought)
            writer.save_episode()
    return root


@pytest.fixture(scope="module")
def found(faulty):
    return overview_of(EpisodeData(faulty))


def test_episodes_unlike_the_others_are_said_and_why(found):
    said = [(one.episode, one.kind, one.detail) for one in found.oddities]
    assert (LONG, "long", "9.0 s, usual are 3.0 s") in said
    (value,) = [one for one in said if one[1] == "action"]
    assert value[0] == SPIKE
    assert re.fullmatch(r"y is 7 at 1\.20 s, usual are -0\.49\d+ to 0\.49\d+", value[2])
    assert {one[0] for one in said} == {LONG, SPIKE}


def test_copies_are_found_whether_exact_or_nearly(found):
    assert found.copies == [([1, COPY], True), ([2, NEAR], False)]


def test_what_cleaning_would_remove_is_said(found):
    assert {(one.filter, one.episode) for group in found.findings.values() for one in group} == {
        ("action_jump", SPIKE), ("blank_camera", BLANK)}  # fmt: skip
    assert found.cleaning["totals"]["episodes_kept"] == len(LENGTHS) - 1
    assert found.flagged() == {1, 2, SPIKE, LONG, COPY, NEAR, BLANK}
    assert found.remarks(COPY) == ["the same as episode 1"]
    assert [text.split(":")[0] for text in found.remarks(SPIKE)] == ["action", "syvla-clean, action_jump"]


def test_statistics_are_those_of_all_frames(found):
    actions = np.concatenate([motion(episode, length)[1] for episode, length in enumerate(LENGTHS)])
    (row,) = [one for one in found.statistics if (one["kind"], one["name"]) == ("action", "y")]
    assert (row["max"], row["not_finite"], sum(row["histogram"])) == (7.0, 0, len(actions))
    assert row["mean"] == pytest.approx(float(actions[:, 1].mean()), rel=1e-4)
    assert row["q99"] == pytest.approx(float(np.quantile(actions[:, 1].astype(np.float64), 0.99)), rel=1e-4)


def test_views_are_those_that_training_infers(found):
    assert found.views == {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}
    assert found.tasks == [("wave & wait 0", 7, 210), ("wave & wait 1", 6, 240)]


def test_few_or_even_values_have_no_odd_one():
    assert odd_ones(np.array([1.0, 1.0, 9.0])) == []
    assert odd_ones(np.ones(20)) == []
    assert odd_ones(np.array([10.0] * 10 + [12.0])) == [], "a fifth more is nothing odd"
    assert odd_ones(np.array([10.0] * 10 + [14.0])) == [10]


def test_the_report_is_one_file_and_texts_of_the_dataset_are_no_html(faulty, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in faulty.rglob("*")}
    target = tmp_path / "report.html"
    assert main([str(faulty), "--report", str(target)]) == 0
    text = target.read_text()
    assert "<script" not in text
    assert "http" not in text
    assert "wave &lt;b&gt;slowly&lt;/b&gt;" in text
    assert "<b>slowly" not in text
    assert "wave &amp; wait 0" in text
    assert "blank_camera" in text
    assert "nearly the same: 2, 11" in text
    assert text.count("data:image/jpeg;base64,") >= 12
    assert {path: path.stat().st_mtime_ns for path in faulty.rglob("*")} == before
    assert main([str(faulty), "--report", str(faulty / "report.html")]) == 1
    assert "lies inside the dataset" in capsys.readouterr().err


def test_the_page_shows_the_dataset_and_each_fault_where_it_is(serve, open_page, faulty):
    served = serve(faulty, module="syvla.processing.annotation.look_command")
    until(lambda: not served.call("/api/look/overview")[1]["working"], 60)
    assert served.call("/api/episodes?show=flagged")[1]["total"] == 7
    looked = served.call(f"/api/look/episode?episode={SPIKE}")[1]
    assert looked["removed"] == [[12, 13, "action_jump"]]
    assert looked["action"][1]["y"][12] == 7.0
    page = open_page(f"{served.url}#{SPIKE}")
    until(lambda: page.value("document.querySelectorAll('#gone .piece').length === 1"), 30)
    assert page.value("document.getElementById('plots').children.length") == 5, "three states and two actions"
    assert "action_jump" in page.value("document.getElementById('notes').textContent")
    for hidden in ("mark", "copy", "undo", "known"):
        assert page.value(f"document.getElementById('{hidden}').hidden"), hidden
    page.press("t", "document.getElementById('overview').textContent.includes('nearly the same')")
    until(lambda: page.value("!document.getElementById('overview').hidden"), 30)
    assert "blank_camera" in page.value("document.getElementById('overview').innerText")
    assert served.call("/api/subtasks", {"episode": 0, "revision": 0, "name": "", "subtasks": []})[0] == 422
    assert served.stop()[0] == 0


def test_a_look_without_cleaning_says_so(faulty, tmp_path):
    target = tmp_path / "report.html"
    assert main([str(faulty), "--report", str(target), "--no-clean"]) == 0
    assert "not looked for" in target.read_text()
    assert overview_of(EpisodeData(faulty), clean=False).cleaning is None
    assert Annotator(EpisodeData(faulty), read_only=True).annotated() == [True] + [False] * 12
