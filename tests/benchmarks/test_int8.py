"""`benchmarks.int8`: eager, small, with torchao where it is installed; without it the command says what is missing."""

import importlib.util
import json

import pytest

from benchmarks import int8, reporting

HAS_TORCHAO = importlib.util.find_spec("torchao") is not None


@pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed")
def test_every_form_is_set_against_the_plain_layers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    monkeypatch.setattr(int8, "LAYERS", {"small": (3, 64, 128)})
    int8.main(["--device", "cpu", "--repeats", "3", "--no-compile"])
    (section,) = json.loads((tmp_path / "int8.json").read_text())["devices"].values()
    for dtype in ("float32", "bfloat16"):
        found = section[dtype]["small"]
        times = found["milliseconds"]
        assert found["ratios"]["int8 / plain"] == times["int8"] / times["plain"]
        assert 0 < found["relative_error"] < 0.02
    assert "packed / plain" in capsys.readouterr().out


@pytest.mark.skipif(HAS_TORCHAO, reason="torchao is installed")
def test_without_torchao_the_command_says_so():
    with pytest.raises(SystemExit, match=r"needs torchao .*; pip install torchao"):
        int8.main([])
