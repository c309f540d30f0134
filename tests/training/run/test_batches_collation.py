"""Training without padding tokens: the same losses, and when it is not possible."""

import json
import logging

import pytest
from pretrained_parts import vlm_config

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.training.run.batches import TrainingCollator, choose_padding_free


def history(folder):
    return [entry for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_runs_with_and_without_padding_have_the_same_losses(multimodal_path, finetune, tmp_path, checkpointing):
    """Robots with and without thoughts, chats, accumulation; through the command line."""
    options = {"multimodal_datasets": multimodal_path, "multimodal_share": 0.25, "gradient_accumulation_steps": 2,
               "gradient_checkpointing": checkpointing}  # fmt: skip
    assert finetune(tmp_path / "padded", padding_free="false", **options) == 0
    assert finetune(tmp_path / "free", padding_free="true", **options) == 0
    padded, free = history(tmp_path / "padded"), history(tmp_path / "free")
    assert len(padded) == 3
    for key in ("loss", "action_loss", "lm_loss", "lm_loss_by_source/chats.jsonl", "decoupling/masked_fraction"):
        assert [e[key] for e in free] == pytest.approx([e[key] for e in padded], rel=1e-5), key
    assert [e["grad_norm"] for e in free] == pytest.approx([e["grad_norm"] for e in padded], rel=1e-4)


def test_it_is_chosen_where_possible_and_can_be_declined(tiny_model, caplog):
    with caplog.at_level(logging.WARNING):
        assert choose_padding_free(tiny_model, None)
        assert tiny_model.padding_free
        assert not choose_padding_free(tiny_model, False)
        assert not tiny_model.padding_free
    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"length_bucket": 32}, "length_bucket=32 pads to a few lengths"),
        ({"compiled": True}, "torch_compile needs shapes that come again"),
    ],
)
def test_settings_against_it_are_refused_or_named_once(tiny_model, caplog, settings, reason):
    with pytest.raises(ValueError, match=f"padding_free: {reason}"):
        choose_padding_free(tiny_model, True, **settings)
    with caplog.at_level(logging.WARNING):
        assert not choose_padding_free(tiny_model, None, **settings)
        assert not choose_padding_free(tiny_model, False, **settings)
    assert [record.getMessage() for record in caplog.records] == [caplog.records[0].getMessage()]
    assert caplog.records[0].getMessage().startswith(f"batches are padded: {reason}")
    assert not tiny_model.padding_free


def test_a_family_that_cannot_do_without_padding_is_padded_with_a_warning(caplog):
    model = SyVLAModel(SyVLAConfig.tiny(vlm_config=vlm_config("qwen3_5")))
    with pytest.raises(ValueError, match=r"padding_free: the VLM \(qwen3_5\) has linear_attention layers"):
        choose_padding_free(model, True)
    with caplog.at_level(logging.WARNING):
        assert not choose_padding_free(model, None)
    assert "qwen3_5" in caplog.text


def test_the_command_line_refuses_what_cannot_be_done(finetune, tmp_path, capsys):
    assert finetune(tmp_path, padding_free="true", length_bucket=16) == 1
    assert "error: padding_free: length_bucket=16 pads to a few lengths" in capsys.readouterr().err


def test_a_robot_sample_without_actions_is_refused_by_name(tiny_processor, make_item):
    item = {**make_item(0, thought="reach the cube", actions=None), "episode_index": 4, "frame_index": 2}
    with pytest.raises(ValueError, match=r"actions: missing in a robot sample \('episode 4, frame 2'\).*but a thought"):
        TrainingCollator(tiny_processor.collate)([make_item(1), item])
