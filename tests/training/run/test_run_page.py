"""The page of a run: whole, self-contained, written by one process, at a bounded cost, and going on after a resume."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from syvla.training.run.run_page import Example, RunPage, duration, plots
from syvla.training.run.run_page_callback import LARGEST_SHARE, RunPageCallback


class Reader(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.words.append(data)


HISTORY = [
    {
        "step": 10,
        "loss": 3.0,
        "action_loss": 2.0,
        "grad_norm": 1.5,
        "learning_rate": 1e-4,
        "speed/data_wait_share": 0.25,
    },
    {"step": 10, "eval_loss": 3.5, "eval_action_loss_by_source/lift": 2.5, "eval_vlm_loss": 1.25},
    {
        "step": 20,
        "loss": 2.0,
        "action_loss_by_source/lift": 1.5,
        "skipped_rows/web/too long": 3,
        "nonfinite_steps": 2.0,
    },
    {"step": 20, "objective/success_rate": 0.5, "policy/approxkl_avg": 0.01, "eval_open_loop/lift/error": 0.3},
]


def page(**changes):
    values = {"title": "run <b>", "step": 20, "max_steps": 100, "history": HISTORY, "seconds_left": 4000.0}
    return RunPage(**{**values, **changes}).render()


def test_every_number_of_the_log_is_shown_once():
    bodies = dict(plots(HISTORY))
    lines = [name for body in bodies.values() for name in re.findall(r"</i>([^<]*) <b>", body)]
    assert sorted(lines) == sorted(
        [
            *("training", "held out", "training", "held-out multi-modal rows", "lift", "lift, held out"),
            *("gradient norm", "learning rate", "steps", "share", "success_rate", "approxkl_avg", "error"),
        ]
    )
    assert "objective" in bodies["Further numbers"]
    assert "eval_open_loop/lift" in bodies["Further numbers"]


def test_it_needs_nothing_from_elsewhere_and_shows_foreign_text_as_text():
    evil = "<img src=http://evil/x onerror=alert(1)>"
    example = Example(evil, [(evil, b"jpeg")], evil, {evil: evil})
    text = page(title=evil, examples=[example], datasets=[{"name": evil}], facts={evil: {evil: evil}})
    found = Reader(text)
    assert all(address.startswith("data:image/jpeg;base64,") for address in found.addresses)
    assert found.tags.count("img") == 1
    assert found.tags.count("script") == 1
    assert "".join(found.words).count(evil) >= 6


def test_it_says_where_the_run_is():
    words = " ".join(Reader(page()).words)
    for text in ("step 20 of 100, about 1 h 6 min left", "25.0%", "web/too long", "3 rows", "running"):
        assert text in words
    assert 'http-equiv="refresh"' in page()
    ended = page(state="ended by NonFiniteError: rows", seconds_left=None)
    assert "refresh" not in ended
    assert "ended by NonFiniteError: rows" in ended


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (119, "119 s"), (150, "2 min"), (4000, "1 h 6 min"), (200_000, "2 d 7 h"), (float("inf"), "?")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self):
        return self.now


def run_state(**changes):
    values = {"global_step": 0, "max_steps": 10, "log_history": [], "is_world_process_zero": True}
    return SimpleNamespace(**{**values, **changes})


def test_writing_is_bounded_to_a_share_of_the_time(tmp_path, monkeypatch):
    """A page takes two seconds, a log line comes every second: the next page is due after two hundred."""
    clock, written = Clock(), []

    def slow(path, text):
        clock.now += 2.0
        written.append(clock.now)

    monkeypatch.setattr("syvla.training.run.run_page_callback.write_text", slow)
    callback, args = RunPageCallback(clock=clock), SimpleNamespace(output_dir=str(tmp_path))
    callback.on_train_begin(args, run_state(), None)
    for step in range(1, 1001):
        clock.now += 1.0
        callback.on_log(args, run_state(global_step=step), None)
    assert len(written) == pytest.approx(1000 / (2 / LARGEST_SHARE), abs=1.1)
    callback.on_train_end(args, run_state(global_step=1000), None)
    assert written[-1] == clock.now


def test_only_the_first_process_writes(tmp_path):
    callback, args = RunPageCallback(), SimpleNamespace(output_dir=str(tmp_path))
    other = run_state(is_world_process_zero=False)
    callback.on_train_begin(args, other, None)
    callback.on_log(args, other, None)
    callback.on_train_end(args, other, None)
    assert not list(tmp_path.iterdir())


def test_a_row_or_a_folder_that_fails_is_a_warning(tmp_path, caplog):
    def broken():
        raise ValueError("row 3")

    (tmp_path / "file").write_text("no folder")
    callback = RunPageCallback(examples=broken)
    callback.on_train_begin(SimpleNamespace(output_dir=str(tmp_path / "file")), run_state(), None)
    assert "cannot be shown (ValueError('row 3'))" in caplog.text
    assert "index.html could not be written" in caplog.text


def test_a_run_writes_its_page_and_a_resumed_one_goes_on_with_it(finetune, multimodal_path, tmp_path):
    chats = {"multimodal_datasets": multimodal_path, "multimodal_share": 0.25}
    options = {**chats, "save_strategy": "steps", "save_steps": 2, "eval_split": "[1]", "eval_steps": 2}
    assert finetune(tmp_path, **options, max_steps=2) == 0
    first = (tmp_path / "index.html").read_text()
    assert finetune(tmp_path, **options, max_steps=4, resume_from_checkpoint="auto") == 0
    text = (tmp_path / "index.html").read_text()
    found = Reader(text)
    words = " ".join(found.words)
    assert "step 2 of 2" in " ".join(Reader(first).words)
    assert "step 4 of 4" in words
    assert "finished" in words
    (data,) = re.findall(r'aria-label="Loss" data-lines="([^"]*)"', text)
    lines = json.loads(data.replace("&quot;", '"'))
    assert [x for x, *_ in lines["training"]] == [1, 2, 3, 4]
    assert [x for x, *_ in lines["held out"]] == [2, 4]
    assert found.tags.count("img") == 3  # two views of a robot row, and the picture of a chat
    for shown in ("How many cubes?", "lift the red cube", "episodes [1]", "joint_0"):
        assert shown in words


def test_a_run_that_fails_says_so_on_its_page(finetune, tmp_path, monkeypatch):
    from syvla.training.imitation.trainer import SyVLATrainer

    def fail(self, *args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(SyVLATrainer, "training_step", fail)
    assert finetune(tmp_path) == 1
    assert "ended by OSError: the disk is full" in (tmp_path / "index.html").read_text()
