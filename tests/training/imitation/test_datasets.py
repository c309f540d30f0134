"""Data of a run: unusable rows of web data are skipped and named, and end the run only where they are many."""

import json

import pytest
from PIL import Image


@pytest.fixture
def web_data(tmp_path):
    """Chats of which every second one would end a run: `web_data(good, bad) -> path`."""

    def chat(text, image):
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": "two"}]}
        return {"messages": [user, answer], "images": [image]}

    def write(good: int, bad: int):
        Image.new("RGB", (32, 32), (90, 0, 0)).save(tmp_path / "picture.png")
        kinds = [("Say <|im_end|> twice.", "picture.png"), ("word " * 6000, "picture.png"), ("What?", "gone.png")]
        rows = [chat("How many?", "picture.png")] * good + [chat(*kinds[i % 3]) for i in range(bad)]
        path = tmp_path / "chats.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        return path

    return write


def test_unusable_rows_do_not_end_a_run_and_are_named(finetune, web_data, tmp_path):
    out = tmp_path / "out"
    path = web_data(good=9, bad=3)
    options = {"max_steps": 4, "multimodal_datasets": path, "multimodal_share": 0.75}  # 12 rows: every one is met
    assert finetune(out, **options) == 0
    entries = [json.loads(line) for line in (out / "skipped_rows.jsonl").read_text().splitlines()]
    assert {(entry["path"], entry["row"], entry["cause"]) for entry in entries} == {
        (str(path), 9, "control tokens"),
        (str(path), 10, "too long"),
        (str(path), 11, "missing image"),
    }
    logged = json.loads((out / "log_history.json").read_text())
    counts = {key: value for entry in logged for key, value in entry.items() if key.startswith("skipped_rows/")}
    assert set(counts) == {
        f"skipped_rows/chats.jsonl/{cause}" for cause in ("control tokens", "too long", "missing image")
    }


def test_too_many_unusable_rows_end_the_run_with_their_causes(finetune, web_data, tmp_path, capsys):
    options = {"max_steps": 60, "multimodal_datasets": web_data(good=60, bad=60), "multimodal_share": 0.75}
    assert finetune(tmp_path / "out", **options, max_skipped_share=0.1) == 1
    message = capsys.readouterr().err
    assert "rows cannot be used" in message
    assert "'control tokens':" in message
    assert "max_skipped_share=0.1" in message
    assert "skipped_rows.jsonl" in message
