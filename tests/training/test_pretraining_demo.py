"""The pretraining demonstration: three robots, five multi-modal schemas, a kill and a resume."""

import json
from functools import partial

import pytest

from syvla.processing.multimodal.dataset import MultimodalDataset, resized_size
from syvla.processing.multimodal.sample_files import square_picture, write_samples
from syvla.training.pretraining_demo import loss_table, main


def test_every_file_is_read_but_for_its_unusable_row(tiny_processor, tmp_path):
    formats = set()
    for spec in write_samples(tmp_path, rows=3):
        formats.add(spec["format"])
        rule = partial(resized_size, tiny_processor.image_processor)
        data = MultimodalDataset(resized_size=rule, **spec)
        assert len(data) == 4
        items = [data[index] for index in range(4)]
        assert sum(data.report().values()) == 1, spec["format"]
        tiny_processor.collate(items)
        answer = items[0]["messages"][-1]["content"]
        color = square_picture(0)[1]
        expected = {"cambrian": "yes" if color == "red" else "no"}.get(spec["format"], color)
        assert expected in (answer if isinstance(answer, str) else answer[0]["text"])
    assert len(formats) == 5


def test_a_table_shows_the_ends_of_each_curve():
    losses = [{"loss_by_source/a": 4.0 - step, "lm_loss_by_source/a": 1.0} for step in range(4)]
    losses[0]["loss_by_source/b"] = 7.0
    assert loss_table(losses, "source") == [
        ["a", "4.000 -> 1.000", "- -> -", "1.000 -> 1.000"],
        ["b", "7.000 -> -", "- -> -", "- -> -"],
    ]


@pytest.mark.slow
def test_the_resumed_run_is_the_unbroken_one(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["--output", str(out), "--steps", "8", "--episodes", "1"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["identical"]
    assert [row[0] for row in report["by_embodiment"]] == ["one_arm", "tool_moves", "two_arms"]
    assert len(report["by_source"]) == 8
    assert report["resumed_from"].rpartition("-")[2] in ("4", "6"), "the kill came once checkpoint-4 was whole"
    last = [e for e in json.loads((out / "unbroken" / "log_history.json").read_text()) if "loss" in e][-1]
    assert all(f"action_loss_by_embodiment/{name}" in last for name in ("one_arm", "tool_moves", "two_arms"))
    for name in ("one_arm", "tool_moves", "two_arms"):
        entry = json.loads((out / "killed" / "config.json").read_text())["embodiments"][name]
        assert entry["state_dim"] == (7 if name == "one_arm" else 14)
    assert "bit for bit" in capsys.readouterr().out
