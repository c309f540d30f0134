"""The checkout's own policy, and a game with it."""

from pathlib import Path

import pytest

from syvla.evaluation.play.session import PlaySession, load_tabletop_policy

CHECKPOINT = Path(__file__).resolve().parents[3] / "checkpoints" / "tabletop-lift"


@pytest.fixture(scope="session")
def policy():
    return load_tabletop_policy(str(CHECKPOINT))


@pytest.fixture
def session(policy):
    game = PlaySession(policy)
    yield game
    game.scene.close()
