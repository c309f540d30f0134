"""The contact sheet of augmentation."""

import json

import numpy as np
from PIL import Image

from syvla.training.show_augmentation import MARGIN, main


def test_sheet_shows_the_recorded_image_and_its_changes(robot_dataset_path, tmp_path, capsys):
    data = json.dumps({"path": str(robot_dataset_path), "cameras": {"center": "observation.images.head"}})
    output = tmp_path / "new" / "sheet.png"
    arguments = [data, "--output", str(output), "--samples", "1", "--passes", "2", "--augmentation", "strong"]
    assert main([*arguments, "--augmentation_details", '{"view_dropout": 0}']) == 0
    assert "'rotation': 8.0" in capsys.readouterr().out
    sheet = np.asarray(Image.open(output))
    assert sheet.shape[1] == 3 * (192 + MARGIN) + MARGIN
    columns = [sheet[16:-4, MARGIN + i * (192 + MARGIN) :][:, :192] for i in range(3)]
    assert not np.array_equal(columns[0], columns[1])
    assert not np.array_equal(columns[1], columns[2])


def test_a_wrong_setting_is_one_error(robot_dataset_path, tmp_path, capsys):
    output = str(tmp_path / "sheet.png")
    assert main([str(robot_dataset_path), "--output", output, "--augmentation_details", '{"rotat": 1}']) == 1
    assert "did you mean 'rotation'?" in capsys.readouterr().err
