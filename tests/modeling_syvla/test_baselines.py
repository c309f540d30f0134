"""Controlled baselines by configuration: all hidden states as condition (GR00T), L1 regression (OpenVLA-OFT)."""

from contextlib import nullcontext

import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel, unused_weights
from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.parameters import count_parameters

ALL_STATES = {"conditioning": "all_hidden_states", "intention_decoupling": False}
REGRESSION = {"action_head": "l1_regression", "intention_decoupling": False}
BASELINES = pytest.mark.parametrize("design", [ALL_STATES, REGRESSION], ids=["all_hidden_states", "l1_regression"])


@pytest.fixture
def drawn():
    """Flow noise and timesteps of a batch of three."""
    generator = torch.Generator().manual_seed(3)
    return {"noise": torch.randn(3, 8, 14, generator=generator), "timestep": torch.tensor([0.1, 0.5, 0.9])}


@pytest.fixture
def observations(unequal_items):
    return [{k: v for k, v in item.items() if k not in ("actions", "thought")} for item in unequal_items]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"conditioning": "kv_cache"},
            "conditioning: expected one of 'query_states', 'all_hidden_states', got 'kv_cache'",
        ),
        ({"action_head": "l2"}, "action_head: expected one of 'flow_matching', 'l1_regression', got 'l2'"),
        ({"conditioning": "all_hidden_states"}, "set intention_decoupling=False for this baseline"),
        ({**ALL_STATES, **REGRESSION}, "conditioning: expected 'query_states' with action_head='l1_regression'"),
    ],
)
def test_designs_without_a_meaning_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SyVLAConfig(**fields)
    config = SyVLAConfig.tiny()
    for key, value in fields.items():  # as `finetune.py --model_overrides` does
        setattr(config, key, value)
    with pytest.raises(ValueError, match=message):
        SyVLAModel(config)


def test_the_baseline_by_conditioning_has_the_same_weights_and_the_regression_has_no_expert():
    robots = {"embodiments": {"cobot_magic": {"state_dim": 14, "action_dim": 14}}}
    paper = count_parameters(SyVLAConfig(**robots))
    assert count_parameters(SyVLAConfig(**ALL_STATES, **robots)) == paper
    regression = count_parameters(SyVLAConfig(**REGRESSION, **robots))
    assert regression["VLM"] == paper["VLM"]
    d = 1408
    coders = (14 * d + d + d * d + d) + (d * d + d + d * 14 + 14)
    trunk = 21 * d * d + d + d * d + d
    assert regression["expert: regression head"] == trunk + 50 * d + coders
    parts = {name: n for name, n in regression.items() if name not in ("total", "action expert with adapter")}
    assert sum(parts.values()) == regression["total"]


def test_the_condition_is_every_real_hidden_state(make_model, tiny_processor, unequal_items, drawn):
    """Independent computation: encode, cut each sample's real states by hand, run the expert on them alone."""
    model = make_model(**ALL_STATES)
    batch = tiny_processor.collate(unequal_items)
    loss = model(**batch, **drawn).action_loss_per_sample
    for i, item in enumerate(unequal_items):
        alone = tiny_processor.collate([item])
        vlm = {k: alone.get(k) for k in ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values")}
        hidden = model.encode(**vlm, image_grid_thw=alone["image_grid_thw"])
        assert hidden.shape[1] == alone["attention_mask"].sum() > model.config.num_query_tokens
        names = ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")
        own, _ = model.action_loss(
            hidden,
            ExpertObservation(*(alone[name] for name in names)),
            alone["actions"],
            alone["action_mask"],
            drawn["noise"][i : i + 1],
            drawn["timestep"][i : i + 1],
        )
        torch.testing.assert_close(loss[i], own[0], atol=1e-5, rtol=1e-5)


def test_with_all_hidden_states_the_prompt_reaches_the_expert_past_the_queries(make_model, tiny_processor, make_item):
    """Gradient of the action loss with respect to hidden states: everywhere, not only at the queries."""
    batch = tiny_processor.collate([make_item(1, thought="reach the red cube with the left arm")])
    for design, everywhere in ((ALL_STATES, True), ({"intention_decoupling": False}, False)):
        model = make_model(**design).train()
        kept = []
        original = model.run_vlm

        def run_vlm(*arguments, _original=original, _kept=kept, **options):
            outputs = _original(*arguments, **options)
            outputs.last_hidden_state = outputs.last_hidden_state.detach().requires_grad_()
            _kept.append(outputs.last_hidden_state)
            return outputs

        model.run_vlm = run_vlm
        model(**{**batch, "labels": None}).action_loss.backward()
        reached = kept[0].grad[0].abs().sum(-1) > 0
        is_query = batch["input_ids"][0] == model.config.query_token_id
        assert reached[is_query].all()
        assert bool(reached[~is_query].all()) == everywhere
        assert bool(reached[~is_query].any()) == everywhere


@BASELINES
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_unequal_samples_is_its_samples(
    make_model, tiny_processor, unequal_items, observations, drawn, side, design
):
    model = make_model(**design).train()
    together = model(**tiny_processor.collate(unequal_items, padding_side=side), **drawn)
    for i, item in enumerate(unequal_items):
        own = {key: value[i : i + 1] for key, value in drawn.items()}
        alone = model(**tiny_processor.collate([item]), **own)
        torch.testing.assert_close(together.action_loss_per_sample[i], alone.action_loss, atol=1e-5, rtol=1e-5)
    model.eval()
    predicted = model.predict_actions(**tiny_processor.collate(observations, padding_side=side), noise=drawn["noise"])
    assert predicted.actions.dtype == torch.float32
    assert predicted.actions.shape == (3, 8, 14)
    assert predicted.actions[1, :, 2:].eq(0).all()
    for i, item in enumerate(observations):
        alone = model.predict_actions(**tiny_processor.collate([item]), noise=drawn["noise"][i : i + 1])
        torch.testing.assert_close(predicted.actions[i], alone.actions[0], atol=2e-5, rtol=0)


@BASELINES
def test_thinking_conditions_on_what_training_saw(make_model, tiny_processor, observations, design):
    """The states after a generated thought are those of a training sample that holds it as text."""
    model = make_model(**design)
    inputs = tiny_processor.collate(observations, padding_side="left")
    output = model.predict_actions(
        **inputs, think=True, max_new_tokens=6, tokenizer=tiny_processor.tokenizer, noise=torch.ones(3, 8, 14)
    )
    end = model.config.get_text_config().eos_token_id
    queries = [model.config.query_token_id] * model.config.num_query_tokens
    for i, item in enumerate(observations):
        alone = tiny_processor.collate([item])
        ids = output.thought_ids[i].tolist()
        ids = ids[: ids.index(end)] if end in ids else ids
        whole = torch.tensor([[*alone["input_ids"][0].tolist(), *ids, end, *queries]])
        images = {key: alone[key] for key in ("pixel_values", "image_grid_thw")}
        rest = {
            k: v for k, v in alone.items() if k not in (*images, "input_ids", "attention_mask", "mm_token_type_ids")
        }
        expected = model.predict_actions(whole, torch.ones_like(whole), **images, **rest, noise=torch.ones(1, 8, 14))
        torch.testing.assert_close(output.actions[i], expected.actions[0], atol=1e-4, rtol=0)


@BASELINES
def test_kept_states_act_without_the_vlm(make_model, tiny_processor, observations, drawn, design):
    model = make_model(**design)
    inputs = tiny_processor.collate(observations, padding_side="left")
    kept = model.predict_actions(**inputs, noise=drawn["noise"])
    observation = {k: inputs[k] for k in ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")}
    states = {"query_states": kept.query_states, "condition_mask": kept.condition_mask}
    assert torch.equal(model.predict_actions(**observation, **states, noise=drawn["noise"]).actions, kept.actions)
    assert (kept.condition_mask is None) == (design is REGRESSION)


def test_regression_is_deterministic_and_its_loss_is_the_masked_absolute_error(
    make_model, tiny_processor, unequal_items, observations
):
    model = make_model(**REGRESSION, chunk_end="noise")
    batch = tiny_processor.collate(observations)
    first, second = model.predict_actions(**batch), model.predict_actions(**batch, num_steps=3)
    assert torch.equal(first.actions, second.actions), "no noise and no flow steps"
    for item in unequal_items:
        item["thought"] = None
    batch = tiny_processor.collate(unequal_items)
    loss = model(**batch).action_loss_per_sample
    predicted = first.actions.double()
    for i, mask in enumerate(batch["action_mask"]):
        expected = (predicted[i] - batch["actions"][i].double())[mask].abs().mean()
        torch.testing.assert_close(loss[i].double(), expected, atol=1e-5, rtol=0)


@BASELINES
def test_a_training_step_reaches_every_weight(
    make_model, tiny_processor, unequal_items, make_chat, design, monkeypatch
):
    """Those of the queries, the adapter, the head and the VLM; nothing hangs loose (data-parallel training waits for it)."""
    monkeypatch.setattr(unused_weights, "in_step_with_others", lambda: True)
    model = make_model(**design).train()
    model(**tiny_processor.collate([*unequal_items, make_chat(3)])).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    for name in ("action_queries.weight", "adapter.0.weight", "vlm.model.language_model.layers.0.mlp.up_proj.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name
    model.zero_grad()
    model(**tiny_processor.collate([make_chat(3)])).loss.backward()
    assert all(p.grad is not None for p in model.parameters()), "a batch of chats alone"


def test_decoupling_works_on_the_regression_head_too(make_model, tiny_processor, unequal_items):
    model = make_model(action_head="l1_regression", decoupling_quantile=0.3).train()
    mask = model(**tiny_processor.collate(unequal_items)).query_mask
    assert (~mask).sum(-1).tolist() == [3, 3, 3]  # 0.3 quantile of 8 norms lies between the third and the fourth


@BASELINES
def test_save_and_load_keep_design_and_actions(make_model, tiny_processor, observations, drawn, tmp_path, design):
    model = make_model(**design)
    model.add_embodiment("new", 4, 5)
    model.save_pretrained(tmp_path)
    loaded = SyVLAModel.from_pretrained(tmp_path)
    assert {k: getattr(loaded.config, k) for k in design} == design
    assert loaded.state_dict().keys() == model.state_dict().keys()
    inputs = tiny_processor.collate(observations)
    before, after = (m.predict_actions(**inputs, noise=drawn["noise"]).actions for m in (model, loaded))
    assert torch.equal(before, after)


def test_a_flow_checkpoint_is_not_taken_for_a_regression(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    config = SyVLAConfig.from_pretrained(tmp_path, **REGRESSION)
    with pytest.raises(ValueError, match=r"missing from the checkpoint.*expert\.trunk"):
        SyVLAModel.from_pretrained(tmp_path, config=config)


def test_code_of_the_baselines_travels_with_a_checkpoint(make_model, tmp_path):
    make_model(**REGRESSION).save_pretrained(tmp_path)
    assert (tmp_path / "regression_head.py").is_file()


@pytest.mark.parametrize("count", [3, 8, 13])
def test_queries_are_resized_and_all_else_stays(make_model, tiny_processor, observations, drawn, count):
    model = make_model()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    torch.manual_seed(1)
    model.resize_queries(count)
    kept = min(count, 8)
    after = model.state_dict()
    for name, tensor in before.items():
        if name != "action_queries.weight":
            assert torch.equal(after[name], tensor), name
    assert torch.equal(after["action_queries.weight"][:kept], before["action_queries.weight"][:kept])
    assert after["action_queries.weight"].unique(dim=0).shape == (count, 64)
    with pytest.raises(ValueError, match=rf"expected {count} query tokens") if count != 8 else nullcontext():
        model(**tiny_processor.collate([{**observations[0], "actions": torch.zeros(8, 14).numpy()}]))
    tiny_processor.num_query_tokens = count
    output = model.predict_actions(**tiny_processor.collate(observations), noise=drawn["noise"])
    assert output.query_states.shape == (3, count, 64)


def test_impossible_numbers_of_queries_are_refused(make_model):
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="num_query_tokens: expected a positive integer"):
            make_model().resize_queries(wrong)
    with pytest.raises(ValueError, match="regression head of this model was made for 8 query tokens"):
        make_model(**REGRESSION).resize_queries(4)
