"""`syvla-openloop` from the command line to its files."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from syvla.evaluation.open_loop.command import main

QUICK = ["--quiet", "--draws", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def report(arm_checkpoint, arm_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    options = ["--episodes", "1,2,4", "--think", "--max-new-tokens", "4", "--plots", "2", "--worst", "2"]
    assert main([str(arm_checkpoint), str(arm_data), *options, "--output", str(output), *QUICK]) == 0
    return output


def test_the_json_says_what_was_asked_and_found(report):
    found = json.loads((report / "openloop.json").read_text())
    assert found["settings"]["episodes"] == [1, 2, 4]
    assert found["settings"]["stride"] == 2, "half a chunk"
    assert found["settings"]["training_episodes"] == 2
    assert found["verdict"]["outcome"] in ("learned", "partly", "not learned", "unclear")
    assert [row["episode"] for row in found["episodes"]] == [1, 2, 4]
    assert len(found["moments"]) == 3 + 4 + 4
    assert all("thought" in moment for moment in found["moments"])


def test_errors_follow_from_the_raw_chunks(report):
    found = json.loads((report / "openloop.json").read_text())
    chunks = np.load(report / "chunks.npz", allow_pickle=False)
    error = np.abs(chunks["predicted"] - chunks["recorded"])[:, chunks["real"]].mean((0, 1))
    np.testing.assert_allclose([d["mean_absolute_error"]["policy"] for d in found["dimensions"]], error, rtol=1e-5)


def test_the_page_holds_its_pictures(report):
    page = (report / "index.html").read_text()
    found = json.loads((report / "openloop.json").read_text())
    assert found["verdict"]["sentence"].split(";")[0] in page.replace("&#x27;", "'")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 1 + 2 + 2  # by step, two episodes, two moments
    for picture in pictures:
        assert min(Image.open(io.BytesIO(base64.b64decode(picture))).size) > 200
    assert "http" not in page, "nothing is fetched from elsewhere"


def test_the_same_seed_gives_the_same_file(report, arm_checkpoint, arm_data, tmp_path):
    options = [
        "--episodes",
        "1,2,4",
        "--think",
        "--max-new-tokens",
        "4",
        "--plots",
        "0",
        "--worst",
        "0",
        "--batch-size",
        "3",
    ]
    assert main([str(arm_checkpoint), str(arm_data), *options, "--output", str(tmp_path), *QUICK]) == 0
    first, second = (np.load(folder / "chunks.npz")["predicted"] for folder in (report, tmp_path))
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing is known to be held out"),
        (["--episodes", "x"], "numbers and ranges"),
        (["--episodes", "1", "--camera", "center"], "expected VIEW=FEATURE"),
        (["--episodes", "1", "--stride", "0"], "stride"),
        (["--episodes", "1", "--worst", "-1"], "0 or more"),
    ],
)
def test_a_mistake_ends_with_status_1_and_a_clear_word(arm_checkpoint, arm_data, tmp_path, capsys, options, message):
    assert main([str(arm_checkpoint), str(arm_data), *options, "--output", str(tmp_path / "o"), *QUICK]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists(), "nothing is written of a comparison that failed"
