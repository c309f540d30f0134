"""`syvla-play`: what it says where something is missing."""

import sys

import pytest

from syvla.evaluation.play import command


def test_without_gradio_it_says_what_to_type(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "syvla.evaluation.play.page", raising=False)
    assert command.main([]) == 1
    assert capsys.readouterr().err == "syvla-play: gradio is missing; type: pip install 'syvla[play]'\n"


def test_the_checkouts_own_checkpoint_is_the_default():
    assert command.find_checkpoint(None).endswith("checkpoints/tabletop-lift")
    assert command.find_checkpoint("me/mine") == "me/mine"


def test_outside_of_a_checkout_a_checkpoint_has_to_be_named(monkeypatch):
    monkeypatch.setattr(command, "CHECKPOINT", "checkpoints/none")
    with pytest.raises(FileNotFoundError, match="syvla-play --model FOLDER"):
        command.find_checkpoint(None)
