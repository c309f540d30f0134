"""Without padding tokens the VLM computes what it computes with them."""

import pytest
import torch
from pretrained_parts import build_vlm, vlm_config

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.modeling_syvla.padding_free import SDPA_BY_SEGMENT, FlattenedBatch, padding_free_problem, set_padding_free

TEXT_ONLY = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "images": []}


@pytest.fixture
def mixed(tiny_processor, unequal_items, make_chat):
    """Collates robots with 3, 1 and 2 views, one of them with a thought, and chats with one image and none."""

    def make(side="right", bucket=1):
        items = [unequal_items[0], make_chat(5, size=(48, 32)), *unequal_items[1:], TEXT_ONLY]
        generator = torch.Generator().manual_seed(3)
        drawn = {"noise": torch.randn(5, 8, 14, generator=generator), "timestep": torch.rand(5, generator=generator)}
        return {**tiny_processor.collate(items, padding_side=side, length_bucket=bucket), **drawn}

    return make


def step(model, batch):
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_steps(one, other):
    (expected, gradients), (found, others) = one, other
    for name in ("loss", "action_loss", "lm_loss", "action_loss_per_sample", "lm_loss_sums", "query_states"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5, msg=name)
    assert torch.equal(found.query_mask, expected.query_mask)
    assert torch.equal(found.label_tokens, expected.label_tokens)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("side", "scope"), [("right", "all"), ("left", "suffix")])
def test_losses_and_gradients_are_those_of_the_padded_batch(make_model, mixed, attention, side, scope, checkpointing):
    """Both passes of Intention Decoupling, LM loss, samples without images; any attention and padding side."""
    model = make_model(expert={"cross_attention_scope": scope}).train()
    model.set_attn_implementation({"vlm_config": attention})
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = mixed(side)
    assert not batch["attention_mask"].all(dim=-1).all()
    assert not batch["expert_view_mask"][batch["embodiment_ids"] >= 0].all(), "a view is missing"
    padded = step(model, batch)
    set_padding_free(model)
    assert (model.vlm.model.language_model.config._attn_implementation == SDPA_BY_SEGMENT) == (attention == "sdpa")
    assert_equal_steps(padded, step(model, batch))


def test_all_hidden_states_as_condition_are_those_of_the_padded_batch(make_model, mixed):
    model = make_model(conditioning="all_hidden_states", intention_decoupling=False).train()
    batch = mixed()
    expected = model(**batch).action_loss_per_sample
    set_padding_free(model)
    torch.testing.assert_close(model(**batch).action_loss_per_sample, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_families_do_without_padding_too(mixed, family, attention):
    torch.manual_seed(0)
    robots = {"tabletop": {"state_dim": 14, "action_dim": 14}, "arm": {"state_dim": 3, "action_dim": 2}}
    model = SyVLAModel(SyVLAConfig.tiny(vlm_config=vlm_config(family), embodiments=robots)).train()
    model.vlm.load_state_dict(build_vlm(family, torch.float32).state_dict())  # no two weights alike
    model.set_attn_implementation({"vlm_config": attention})
    batch = mixed()
    padded = step(model, batch)
    set_padding_free(model)
    assert_equal_steps(padded, step(model, batch))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_sample_sees_another(tiny_model, mixed, attention):
    """Bit for bit: another sample of equal length in the row changes nothing in its neighbors."""
    tiny_model.set_attn_implementation({"vlm_config": attention})
    set_padding_free(tiny_model)
    batch = mixed()
    keys = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    inputs = {key: batch[key] for key in keys}
    with torch.no_grad():
        before = tiny_model.encode(**inputs)
        ids = inputs["input_ids"].clone()
        text = (ids[1] < 400) & inputs["attention_mask"][1].bool()
        ids[1] = torch.where(text, (ids[1] + 7) % 400, ids[1])
        after = tiny_model.encode(**{**inputs, "input_ids": ids})
    others = [0, 2, 3, 4]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[1], after[1])


def test_only_real_tokens_reach_the_language_model(tiny_model, mixed):
    """However far the batch is padded; and a batch without padding keeps its shape."""
    set_padding_free(tiny_model)
    shapes = []
    layer = tiny_model.vlm.model.language_model.layers[0]
    layer.register_forward_pre_hook(lambda _, args, kwargs: shapes.append((args or [*kwargs.values()])[0].shape[:2]),
                                    with_kwargs=True)  # fmt: skip
    batch = mixed(bucket=64)
    tokens = int(batch["attention_mask"].sum())
    assert tokens < batch["attention_mask"].numel()
    with torch.no_grad():
        tiny_model(**batch)
        alone = {key: batch[key][:1] for key in ("input_ids", "attention_mask")}
        real = alone["attention_mask"].bool()
        even = {key: value[real].repeat(2, 1) for key, value in alone.items()}
        first = {"pixel_values": batch["pixel_values"][:48], "image_grid_thw": batch["image_grid_thw"][:3]}
        tiny_model.encode(**even, **{key: value.repeat(2, 1) for key, value in first.items()})
    assert shapes == [(1, tokens), (2, int(real.sum()))]


def test_thoughts_and_actions_after_padding_free_training_are_unchanged(tiny_model, tiny_processor, unequal_items):
    """Its attention falls back to plain SDPA where there is one sample per row, as in generation."""
    observations = [{k: v for k, v in item.items() if k not in ("actions", "thought")} for item in unequal_items]
    inputs = tiny_processor.collate(observations, padding_side="left")
    noise = torch.randn(3, 8, 14, generator=torch.Generator().manual_seed(1))
    options = {"noise": noise, "tokenizer": tiny_processor.tokenizer, "max_new_tokens": 4}
    ways = ({}, {"think": True, "do_sample": False})
    expected = [tiny_model.predict_actions(**inputs, **way, **options) for way in ways]
    set_padding_free(tiny_model)
    for way, before in zip(ways, expected, strict=True):
        found = tiny_model.predict_actions(**inputs, **way, **options)
        torch.testing.assert_close(found.actions, before.actions, atol=2e-5, rtol=0)
        assert found.thoughts == before.thoughts
    set_padding_free(tiny_model, False)
    again = tiny_model.predict_actions(**inputs, **options)
    assert torch.equal(again.actions, expected[0].actions)


def test_a_trained_model_is_saved_with_plain_attention(tiny_model, tmp_path):
    set_padding_free(tiny_model)
    tiny_model.save_pretrained(tmp_path)
    loaded = SyVLAModel.from_pretrained(tmp_path)
    assert SDPA_BY_SEGMENT not in (tmp_path / "config.json").read_text()
    assert loaded.vlm.model.language_model.config._attn_implementation == "sdpa"
    assert not loaded.padding_free


def test_flash_attention_finds_the_samples(mixed):
    """`transformers` takes its path for unequal lengths, with the boundaries of the batch."""
    utilities = pytest.importorskip("transformers.modeling_flash_attention_utils")
    mask = mixed()["attention_mask"]
    row = FlattenedBatch(mask)
    positions = row.flatten(torch.zeros(3, *mask.shape, dtype=torch.long))
    arguments = row.attention_arguments(positions, "flash_attention_2")
    assert arguments.keys() == {"position_ids"}, "an attention mask would take the path with padding"
    plain = arguments["position_ids"][0]
    assert arguments["position_ids"].shape == (4, 1, mask.sum())
    assert utilities._is_packed_sequence(plain, 1)
    (boundaries, _), (longest, _) = utilities.prepare_fa_kwargs_from_position_ids(plain)
    assert boundaries.tolist() == [0, *mask.sum(-1).cumsum(0).tolist()]
    assert longest == mask.sum(-1).max()


def test_a_family_whose_state_runs_along_the_row_is_refused():
    model = SyVLAModel(SyVLAConfig.tiny(vlm_config=vlm_config("qwen3_5")))
    assert "linear_attention layers" in padding_free_problem(model)
    with pytest.raises(ValueError, match=r"padding_free: the VLM \(qwen3_5\) has linear_attention layers, whose state"):
        set_padding_free(model)
    assert not model.padding_free
