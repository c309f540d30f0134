"""README's moving picture: small enough, moving, and made of what a run shows."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from syvla.evaluation.play.session import PlaySession, load_tabletop_policy

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("make_moving_picture", ROOT / "scripts" / "make_moving_picture.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def test_the_stored_picture_moves_and_is_small():
    assert script.OUTPUT.stat().st_size <= 3_000_000
    with Image.open(script.OUTPUT) as picture:
        assert picture.is_animated
        assert picture.size == script.SIZE
        assert picture.info["loop"] == 0, "for ever"
    assert "docs/figures/play.webp" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_run_becomes_frames_in_real_time():
    session = PlaySession(load_tabletop_policy(str(ROOT / "checkpoints" / "tabletop-lift")))
    session.new_scene(script.SHOWN[0])
    views = {name: Image.fromarray(picture) for name, picture in session.moment.pictures.items()}
    moments = list(session.run(session.instruction, most_steps=2))
    before, after = (np.asarray(script.draw(session, views, moment)) for moment in (moments[0], moments[-1]))
    assert before.shape == (*script.SIZE[::-1], 3)
    plots = (slice(174, None), slice(456, None))
    assert (before[plots] != after[plots]).any(), "the chunk is drawn"
    assert session.scene.env.control_hz == 1000 / script.STEP_MS
    session.scene.close()
