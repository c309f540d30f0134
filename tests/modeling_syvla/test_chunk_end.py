"""What stands in a chunk's steps after the end of an episode, by `chunk_end`."""

import json

import pytest
import torch
from transformers import AutoConfig

from syvla.modeling_syvla import SyVLAConfig
from syvla.modeling_syvla.consistent_design import CHUNK_ENDS
from syvla.modeling_syvla.expert_inputs import action_target, end_chunks

ACTIONS = torch.tensor([[1.0, 2.0, 9.0, float("nan")], [5.0, 9.0, 9.0, 9.0]])[..., None].expand(2, 4, 14)
REAL = torch.tensor([[True, True, False, False], [True, False, False, False]])


@pytest.mark.parametrize(
    ("chunk_end", "first", "trained"),
    [
        ("noise", [1, 2, 0, 0], [1, 1, 0, 0]),
        ("masked", [1, 2, 0, 0], [1, 1, 0, 0]),
        ("hold", [1, 2, 2, 2], [1, 1, 1, 1]),
        ("hold_untrained", [1, 2, 2, 2], [1, 1, 0, 0]),
    ],
)
def test_padding_becomes_zeros_or_the_last_action_and_is_trained_or_not(chunk_end, first, trained):
    """What stands in padding before, NaN as well, is never read."""
    mask = REAL[..., None].expand(2, 4, 14) & (torch.arange(14) < 6)
    actions, kept = end_chunks(chunk_end, ACTIONS, mask)
    assert actions[0, :, 3].tolist() == first
    assert actions[..., 6:].eq(0).all(), "dimensions that the robot does not have"
    assert kept[0, :, 3].tolist() == [bool(t) for t in trained]
    assert not kept[..., 6:].any()
    if chunk_end.startswith("hold"):
        assert actions[1, :, 0].tolist() == [5, 5, 5, 5]


@pytest.fixture
def batch(tiny_processor, make_item):
    import numpy as np

    return tiny_processor.collate([make_item(i, action_is_pad=np.arange(8) >= 5) for i in range(3)])


@pytest.mark.parametrize("chunk_end", CHUNK_ENDS)
def test_what_the_loss_reads_of_a_chunks_end(chunk_end, make_model, batch):
    """Padded noise reaches the loss by attention (not with `masked`), or because these steps are trained."""
    model = make_model(chunk_end=chunk_end, intention_decoupling=False).eval()
    fixed = {"timestep": torch.tensor([0.2, 0.5, 0.7]), "noise": torch.randn(3, 8, model.config.max_action_dim)}
    other = fixed["noise"].clone()
    other[:, 5:] += 1.0
    changed = dict(batch)
    changed["actions"] = torch.where(batch["action_mask"], batch["actions"], torch.tensor(7.0))
    with torch.no_grad():
        loss = model(**batch, **fixed).action_loss
        torch.testing.assert_close(model(**changed, **fixed).action_loss, loss, rtol=0, atol=0)
        moved = model(**batch, **{**fixed, "noise": other}).action_loss
    assert torch.equal(moved, loss) == (chunk_end == "masked")


def test_the_loss_of_held_actions_is_that_of_a_chunk_that_really_stands_still(make_model, batch):
    """Independent of the code that holds: a chunk whose last steps repeat the action, all of them real."""
    still = dict(batch)
    still["actions"], still["action_mask"] = batch["actions"].clone(), batch["action_mask"].clone()
    still["actions"][:, 5:] = batch["actions"][:, 4:5]
    still["action_mask"][:, 5:] = batch["action_mask"][:, 4:5]
    fixed = {"timestep": torch.tensor([0.2, 0.5, 0.7]), "noise": torch.randn_like(batch["actions"])}
    with torch.no_grad():
        held = make_model(chunk_end="hold", intention_decoupling=False)(**batch, **fixed).action_loss
        real = make_model(chunk_end="noise", intention_decoupling=False)(**still, **fixed).action_loss
    torch.testing.assert_close(held, real, rtol=1e-6, atol=1e-6)


def test_a_new_model_holds_and_a_checkpoint_of_before_keeps_its_meaning(tmp_path):
    assert SyVLAConfig.tiny().chunk_end == "hold"
    SyVLAConfig.tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved["chunk_end"] == "hold", "written although it is the default"
    for config in (AutoConfig.from_pretrained(tmp_path), SyVLAConfig.from_json_file(path)):
        assert config.chunk_end == "hold"
    del saved["chunk_end"]
    path.write_text(json.dumps(saved))
    for config in (AutoConfig.from_pretrained(tmp_path), SyVLAConfig.from_json_file(path)):
        assert config.chunk_end == "noise"
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert json.loads(path.read_text())["chunk_end"] == "noise"


def test_values_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="chunk_end: expected one of 'noise', 'masked'"):
        SyVLAConfig.tiny(chunk_end="zero")
    with pytest.raises(ValueError, match="has no effect with action_head='l1_regression'"):
        SyVLAConfig.tiny(chunk_end="masked", action_head="l1_regression")


def test_the_target_of_a_mask_without_padding_is_the_same_for_all():
    ids, actions = torch.zeros(2, dtype=torch.long), torch.randn(2, 8, 14)
    targets = [action_target(SyVLAConfig.tiny(chunk_end=end), ids, actions) for end in CHUNK_ENDS]
    for target in targets:
        assert torch.equal(target.actions, actions)
        assert target.mask.all()
