"""The common pipeline: any number of workers, going on after a kill, other mappings, the command line."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from source_files import numbers, write_aloha

from syvla.processing import RobotDataset
from syvla.processing.conversion import pipeline
from syvla.processing.conversion.aloha_hdf5 import AlohaSource
from syvla.processing.conversion.command import main
from syvla.processing.conversion.mapping import Clock, ConversionMapping, MappingError, load_mapping, load_preset
from syvla.processing.conversion.pipeline import convert


def mapping(**changes) -> ConversionMapping:
    return replace(load_preset("aloha"), fps=50, task="fold", **{"storage": "image", **changes})


@pytest.fixture
def source(tmp_path) -> AlohaSource:
    for episode in range(5):
        write_aloha(tmp_path / f"source/episode_{episode}.hdf5", episode, 2 + episode, size=(16, 16))
    return AlohaSource(tmp_path / "source")


def contents(root: Path) -> dict[str, list]:
    dataset = RobotDataset(root, embodiment="x", chunk_size=1)
    items = [dataset[index] for index in range(len(dataset))]
    return {
        "states": dataset.states.tolist(),
        "actions": dataset.actions.tolist(),
        "lengths": dataset.episode_lengths.tolist(),
        "images": [item["images"][view].tolist() for item in items for view in sorted(item["images"])],
    }


@pytest.mark.slow
def test_two_workers_make_the_same_dataset_as_one(source, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    convert(source, one, mapping(storage="video"), progress=False, video_codec="h264")
    convert(source, two, mapping(storage="video"), progress=False, workers=2, video_codec="h264")
    assert contents(one) == contents(two)
    assert not (two / ".recording").exists()


def convert_and_die(root: str, out: str, after: int) -> None:
    """Converts until `after` episodes are saved and one more is in the journal, then dies as by a power cut."""
    saved = 0
    append = pipeline.append_json_lines

    def dying(path, entries):
        nonlocal saved
        append(path, entries)
        if saved == after:
            os.kill(os.getpid(), signal.SIGKILL)
        saved += 1

    pipeline.append_json_lines = dying
    convert(AlohaSource(Path(root)), out, mapping(), progress=False)


def test_a_killed_conversion_goes_on_and_ends_the_same(source, tmp_path):
    whole = tmp_path / "whole"
    convert(source, whole, mapping(), progress=False)
    process = multiprocessing.get_context("spawn").Process(
        target=convert_and_die, args=(str(source.root), str(tmp_path / "out"), 2)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (
        RobotDataset(tmp_path / "out", embodiment="x", chunk_size=1).num_episodes == 2
    )  # half a conversion is readable
    report = convert(source, tmp_path / "out", mapping(), progress=False)
    assert (report.resumed, len(report.converted)) == (2, 5)
    assert [entry["source"] for entry in report.converted] == [f"episode_{n}.hdf5" for n in range(5)]
    assert contents(tmp_path / "out") == contents(whole)
    again = convert(source, tmp_path / "out", mapping(), progress=False)
    assert (again.resumed, len(again.converted)) == (5, 5)


def test_another_mapping_or_folder_is_refused(source, tmp_path):
    convert(source, tmp_path / "out", mapping(), limit=1, progress=False)
    with pytest.raises(ValueError, match=r"converted with other \['fps', 'task'\]"):
        convert(source, tmp_path / "out", replace(mapping(), fps=30, task="x"), progress=False)
    (tmp_path / "out/meta/conversion_mapping.json").unlink()
    with pytest.raises(ValueError, match="no conversion made"):
        convert(source, tmp_path / "out", mapping(), progress=False)


def test_clocks_that_jump_run_backwards_or_tick_at_another_rate(source, tmp_path):
    import h5py

    clocks = {
        0: np.arange(10) * 20.0,
        1: np.arange(10) * 20.0 + np.where(np.arange(10) >= 6, 100.0, 0.0),
        2: np.array([0, 20, 40, 30, 60, 80, 100, 120, 140, 160.0]),
        3: np.arange(10) * 33.3,
    }
    for episode, times in clocks.items():
        with h5py.File(write_aloha(source.root / f"episode_{episode}.hdf5", episode, 10, size=(16, 16)), "a") as file:
            file["stamps"] = times
    report = convert(source, tmp_path / "out", mapping(clock=Clock("stamps", "ms")), progress=False)
    assert [entry["source"] for entry in report.converted] == ["episode_0.hdf5"]
    reasons = [entry["reason"] for entry in report.dropped]
    assert "the clock jumps by 0.12 s at frame 6" in reasons[0]
    assert "runs backwards or stands still at frame 3" in reasons[1]
    assert "30.03 frames per second, the mapping says fps: 50" in reasons[2]
    assert "clock: stamps is missing" in reasons[3]


def test_units_signs_and_slices_of_the_mapping_are_applied(source, tmp_path):
    part = replace(mapping().action[0], scale=-1.0, offset=0.5, clip=(-100.2, 0.0))
    convert(source, tmp_path / "out", mapping(action=(part,), skip_first=1), progress=False)
    dataset = RobotDataset(tmp_path / "out", embodiment="x", chunk_size=1)
    assert dataset.action_dim == 6
    expected = np.concatenate([numbers(e, 2 + e, 14)[1:, :6] + 100 for e in range(5)])
    np.testing.assert_allclose(dataset.actions, np.clip(0.5 - expected, -100.2, 0.0), rtol=1e-6)


# -- the command ----------------------------------------------------------------------------------------------------------


def test_command_writes_a_mapping_that_it_then_converts_with(source, tmp_path, capsys):
    path = tmp_path / "mapping.yaml"
    base = ["aloha-hdf5", str(source.root)]
    assert main([*base, "--write-mapping", str(path)]) == 0
    assert "TO DO: fps" in path.read_text()
    assert load_mapping(path) == load_preset("aloha")
    assert main([*base, str(tmp_path / "out"), "--mapping", str(path)]) == 1
    assert "fps: the files do not say" in capsys.readouterr().err
    (source.root / "episode_3.hdf5").write_bytes(b"")
    options = ["--mapping", str(path), "--fps", "50", "--task", "fold it", "--storage", "image", "--quiet"]
    assert main([*base, str(tmp_path / "out"), *options]) == 0
    assert "4 episodes, 15 frames; 1 dropped" in capsys.readouterr().out
    assert main([*base, str(tmp_path / "out"), *options, "--strict"]) == 1
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["fps"], info["robot_type"], info["total_episodes"]) == (50, "aloha", 4)


def test_command_says_what_to_do_with_an_unknown_robot(tmp_path, capsys):
    import h5py

    with h5py.File(write_aloha(tmp_path / "source/a.hdf5"), "a") as file:
        del file["action"]
        file["action"] = np.zeros((5, 8))
    assert main(["aloha-hdf5", str(tmp_path / "source"), str(tmp_path / "out")]) == 1
    assert "unknown robot; write a mapping with --write-mapping" in capsys.readouterr().err
    assert main(["aloha-hdf5", str(tmp_path / "source"), "--write-mapping", str(tmp_path / "m.yaml")]) == 0
    found = load_mapping(tmp_path / "m.yaml")
    assert {spec.unit for spec in (*found.state, *found.action)} == {"unknown"}


def test_every_problem_of_a_mapping_is_listed(tmp_path):
    values = load_preset("aloha").to_dict()
    values["fps"] = 0.5
    values["state"][0]["names"] = ["one"]
    values["action"][0]["scale"] = float("nan")
    values["cameras"]["observation.images.head"]["flip"] = "upside down"
    values["color"] = 1
    with pytest.raises(MappingError, match=r"unknown keys \['color'\]"):
        ConversionMapping.from_dict(values)
    del values["color"]
    with pytest.raises(MappingError) as caught:
        ConversionMapping.from_dict(values)
    for part in (
        "fps: expected",
        "6 dimensions (0 to 6), 1 names",
        "scale: expected a finite",
        "flip: expected one of",
    ):
        assert part in str(caught.value)
