"""`syvla-annotate` as a person uses it: started in a process, driven by keys in a browser, killed and started again."""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from dataset_recordings import record
from rl_robot import until

from syvla.processing.annotation.command import main
from syvla.processing.annotation.dataset_lock import DatasetLock, require_annotatable
from syvla.processing.robot_data.robot_dataset import RobotDataset

GOLDEN = Path(__file__).resolve().parents[2] / "data"


def thoughts(root, episode):
    dataset = RobotDataset(root, embodiment="x", chunk_size=2, episodes=[episode])
    return [dataset.thought_at(index) for index in range(len(dataset))]


def test_a_person_marks_subtasks_with_keys_and_training_reads_them(serve, open_page, dataset):
    served = serve(dataset)
    page = open_page(served.url + "#1")
    ready = "typeof ep === 'object' && ep !== null && ep.episode === 1 && !drawing"

    def key(name, times=1, when=ready, **more):
        for _ in range(times):
            until(lambda: page.value(when), 30)
            for kind in ("keyDown", "keyUp"):
                page.call("Input.dispatchKeyEvent", type=kind, key=name, **more)

    def save(text, length):
        key("m")
        until(lambda: page.value("document.getElementById('picker').open"), 30)
        page.call("Input.insertText", text=text)
        key("Enter", when="true")
        until(lambda: page.value(f"ep.subtasks.length === {length} && ep.revision === {length}"), 30)

    save("reach", 1)
    key("ArrowRight", 3)
    assert page.value("frame") == 3
    save("lift", 2)
    key("ArrowRight", 2)
    key("1", when=ready + " && frame === 5 && ep.texts.length === 2")
    until(lambda: page.value("ep.revision") == 3, 30)
    assert page.value("JSON.stringify(ep.subtasks)") == '[[0,"reach"],[3,"lift"],[5,"reach"]]'
    key("x")
    until(lambda: page.value("ep.revision") == 4, 30)
    key("z", modifiers=2)  # with Ctrl
    until(lambda: page.value("ep.revision") == 5, 30)
    page.call("Page.reload")
    until(lambda: page.value(ready), 30)
    assert page.value("JSON.stringify(ep.subtasks)") == '[[0,"reach"],[3,"lift"],[5,"reach"]]'
    status, out, errors = served.stop()
    assert (status, errors) == (0, "")
    assert "Every change is in the dataset." in out
    assert thoughts(dataset, 1) == ["reach"] * 3 + ["lift"] * 2 + ["reach"] * 2


def test_a_killed_command_loses_nothing(serve, dataset):
    served = serve(dataset)
    assert served.annotate(0, (0, "reach"), (2, "lift"))[0] == 200
    served.stop(signal.SIGKILL)
    again = serve(dataset)
    assert again.call("/api/episode?episode=0")[1]["subtasks"] == [[0, "reach"], [2, "lift"]]
    assert again.stop(signal.SIGTERM)[0] == 0
    assert thoughts(dataset, 0) == ["reach"] * 2 + ["lift"] * 3


def test_a_kill_while_a_file_is_replaced_leaves_the_former_one(serve, dataset):
    path = dataset / "data/chunk-000/file-000.parquet"
    before = path.read_bytes()

    def trap():
        replace = os.replace
        os.replace = lambda a, b: os.kill(os.getpid(), signal.SIGKILL) if Path(b) == path else replace(a, b)

    served = serve(dataset, before=trap)
    assert served.annotate(0, (0, "reach"))[0] == 200
    served.process.join(60)
    assert served.process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert thoughts(dataset, 0) == [None] * 5
    again = serve(dataset)
    assert again.call("/api/status")[1]["messages"] == ["recovered changes of 1 episodes that were not in the data yet"]
    assert again.stop()[0] == 0
    assert thoughts(dataset, 0) == ["reach"] * 5
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_second_annotator_is_told(serve, dataset, capsys):
    serve(dataset)
    assert main([str(dataset), "--port", "0"]) == 1
    assert "another program annotates or records here; close it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["org/dataset"], "hf download NAME --repo-type dataset"),
        (
            [str(GOLDEN / "lerobot_v21_tiny")],
            "sub-tasks have a column from v3.0 on. Convert a copy by LeRobot's script",
        ),
        ([str(GOLDEN)], "holds no LeRobot dataset"),
        ([str(GOLDEN / "lerobot_v3_tiny"), "--host", "0.0.0.0"], "can be reached from other machines; give a token"),
        ([str(GOLDEN / "lerobot_v3_tiny"), "--token-file", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_annotated_is_named(arguments, message, capsys):
    assert main([*arguments, "--port", "0"]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_named():
    """As another user where root runs the tests, since root may write anywhere."""
    folder = Path(tempfile.mkdtemp(prefix="syvla-annotate-test-"))
    told = multiprocessing.get_context("fork").Queue()

    def as_another_user(root):
        if os.geteuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        try:
            require_annotatable(root)
        except PermissionError as error:
            told.put(str(error))
        try:
            DatasetLock(root)
        except PermissionError as error:
            told.put(str(error))

    try:
        root = record(folder / "dataset", (3,))
        for path in [folder, root, *root.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        process = multiprocessing.get_context("fork").Process(target=as_another_user, args=(root,))
        process.start()
        for _ in range(2):
            assert "cannot be written to (Permission denied); copy the dataset" in told.get(timeout=60)
        process.join(60)
        assert not (root / ".recording").exists()
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_the_hub_s_cache_is_not_changed(tmp_path, monkeypatch, capsys):
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    root = cache / "datasets--me--d" / "snapshots" / "1"
    shutil.copytree(GOLDEN / "lerobot_v3_tiny", root)
    before = json.loads((root / "meta/info.json").read_text())
    assert main([str(root), "--port", "0"]) == 1
    assert "in the Hub's cache, whose files nothing may change" in capsys.readouterr().err
    assert json.loads((root / "meta/info.json").read_text()) == before
