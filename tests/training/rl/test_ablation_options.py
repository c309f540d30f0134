"""What the ablations of the paper change, through `syvla-finetune` alone: thoughts, number of queries, design."""

import json

import pytest
from transformers import AutoModel, AutoProcessor


def history(folder):
    return [entry for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


def test_ignored_thoughts_leave_no_text_to_learn(finetune, tmp_path):
    assert finetune(tmp_path / "with") == 0
    assert finetune(tmp_path / "without", ignore_thoughts=True) == 0
    assert any(entry.get("lm_loss", 0) > 0 for entry in history(tmp_path / "with"))
    assert not any("lm_loss" in entry for entry in history(tmp_path / "without"))


@pytest.mark.parametrize("count", [5, 11])
def test_another_number_of_queries_is_trained_and_saved_with_its_processor(finetune, tmp_path, count):
    assert finetune(tmp_path, num_query_tokens=count) == 0
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert model.action_queries.weight.shape[0] == processor.num_query_tokens == count
    assert all(entry["decoupling/masked_fraction"] == pytest.approx(1 / count) for entry in history(tmp_path))


def test_full_hidden_state_conditioning_is_an_override(finetune, tmp_path, capsys):
    overrides = {"conditioning": "all_hidden_states", "intention_decoupling": False}
    assert finetune(tmp_path, model_overrides=json.dumps(overrides)) == 0
    assert AutoModel.from_pretrained(tmp_path).config.conditioning == "all_hidden_states"
    del overrides["intention_decoupling"]
    assert finetune(tmp_path / "refused", model_overrides=json.dumps(overrides)) == 1
    assert "set intention_decoupling=False for this baseline" in capsys.readouterr().err


def test_the_regression_baseline_trains_from_its_own_checkpoint(finetune, tmp_path):
    """Its vision presets freeze what there is: the VLM's encoder."""
    import torch

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import build_tiny_processor

    config = SyVLAConfig.tiny(embodiments={}, action_head="l1_regression")
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(tmp_path / "base")
    build_tiny_processor(config).save_pretrained(tmp_path / "base")
    assert finetune(tmp_path / "trained", model=tmp_path / "base", freeze="vision") == 0
    before, after = (AutoModel.from_pretrained(tmp_path / name) for name in ("base", "trained"))
    assert torch.equal(before.vlm.model.visual.patch_embed.proj.weight, after.vlm.model.visual.patch_embed.proj.weight)
    assert not torch.equal(before.expert.trunk[0].weight, after.expert.trunk[0].weight)
    assert all(entry["action_loss"] > 0 for entry in history(tmp_path / "trained"))
