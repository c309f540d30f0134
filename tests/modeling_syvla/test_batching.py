"""A batch of unequal samples is its samples: nothing that pads one of them reaches another, or its own loss."""

import numpy as np
import pytest
import torch


@pytest.fixture
def drawn():
    """Flow noise and timesteps of a batch of three."""
    generator = torch.Generator().manual_seed(3)
    return {"noise": torch.randn(3, 8, 14, generator=generator), "timestep": torch.tensor([0.1, 0.5, 0.9])}


def row(drawn, i):
    return {key: value[i : i + 1] for key, value in drawn.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("training", [False, True])
def test_forward_of_a_batch_equals_single_samples(tiny_model, tiny_processor, unequal_items, drawn, side, training):
    tiny_model.train(training)
    together = tiny_model(**tiny_processor.collate(unequal_items, padding_side=side), **drawn)
    assert together.action_loss.item() == pytest.approx(together.action_loss_per_sample.mean().item())
    for i, item in enumerate(unequal_items):
        alone = tiny_model(**tiny_processor.collate([item]), **row(drawn, i))
        torch.testing.assert_close(together.query_states[i], alone.query_states[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.action_loss_per_sample[i], alone.action_loss, atol=1e-5, rtol=1e-5)
        if training:
            assert torch.equal(together.query_mask[i], alone.query_mask[0])
    thinks = tiny_model(**tiny_processor.collate(unequal_items[:1]), **row(drawn, 0))
    torch.testing.assert_close(together.lm_loss, thinks.lm_loss, atol=1e-5, rtol=0)  # the only one with a thought


@pytest.mark.parametrize("side", ["left", "right"])
def test_actions_of_a_batch_equal_those_of_single_samples(tiny_model, tiny_processor, unequal_items, drawn, side):
    observations = [{k: v for k, v in item.items() if k not in ("actions", "thought")} for item in unequal_items]
    noise = drawn["noise"]
    inputs = tiny_processor.collate(observations, padding_side=side)
    together = tiny_model.predict_actions(**inputs, noise=noise).actions
    for i, item in enumerate(observations):
        alone = tiny_model.predict_actions(**tiny_processor.collate([item]), noise=noise[i : i + 1]).actions
        torch.testing.assert_close(together[i], alone[0], atol=2e-5, rtol=0)
    assert together[1, :, 2:].eq(0).all(), "the arm has two action dimensions; the rest stays zero"


def test_multimodal_samples_leave_robot_samples_alone(tiny_model, tiny_processor, unequal_items, make_chat, drawn):
    """Mixed in between, with other images and lengths: same action losses, and the LM loss is over all answers."""
    chats = [make_chat(5), make_chat(6, "Point at the bar.", "(3, 4)", size=(48, 32))]
    robots = tiny_model(**tiny_processor.collate(unequal_items), **drawn)
    mixed = [unequal_items[0], chats[0], *unequal_items[1:], chats[1]]
    rows = [0, 2, 3]
    spread = {"noise": torch.full((5, 8, 14), torch.nan), "timestep": torch.full((5,), torch.nan)}
    for key in spread:
        spread[key][rows] = drawn[key]
    batch = tiny_processor.collate(mixed)
    assert batch["embodiment_ids"].tolist() == [0, -1, 1, 0, -1]
    both = tiny_model(**batch, **spread)
    torch.testing.assert_close(both.action_loss_per_sample, robots.action_loss_per_sample, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.query_states, robots.query_states, atol=1e-5, rtol=0)
    texts = [tiny_model(**tiny_processor.collate([item])).lm_loss for item in (unequal_items[0], *chats)]
    counts = torch.tensor(
        [(tiny_processor.collate([item])["labels"] != -100).sum().item() for item in (unequal_items[0], *chats)]
    )
    torch.testing.assert_close(both.lm_loss, (torch.stack(texts) * counts).sum() / counts.sum(), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.loss, both.action_loss + both.lm_loss)


def step(model, batch):
    """Loss and gradients of one training step."""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("filler", [1e4, float("nan")])
def test_padding_and_missing_views_change_neither_loss_nor_gradients(
    tiny_model, tiny_processor, unequal_items, drawn, filler
):
    tiny_model.train()
    batch = {**tiny_processor.collate(unequal_items), **drawn}
    clean, gradients = step(tiny_model, batch)
    assert clean.loss.isfinite()
    dirty = {key: value.clone() for key, value in batch.items()}
    dirty["actions"][~batch["action_mask"]] = filler  # other robots' dimensions, steps beyond the episode's end
    dirty["noise"][1, :, 2:] = filler  # dimensions that the arm lacks
    dirty["state"][1, 3:] = filler
    dirty["expert_pixel_values"][~batch["expert_view_mask"]] = filler
    dirty["input_ids"][batch["attention_mask"] == 0] = 99
    assert not all(torch.equal(batch[key], dirty[key]) for key in batch)
    after, same = step(tiny_model, dirty)
    assert torch.equal(clean.loss, after.loss)
    assert torch.equal(clean.query_mask, after.query_mask)
    assert gradients.keys() == same.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, same[name]), name


def test_padding_does_not_change_predicted_actions(tiny_model, tiny_processor, unequal_items, drawn):
    observations = [{k: v for k, v in item.items() if k not in ("actions", "thought")} for item in unequal_items]
    inputs = tiny_processor.collate(observations, padding_side="left")
    noise = drawn["noise"].clone()
    before = tiny_model.predict_actions(**inputs, noise=noise).actions
    noise[1, :, 2:] = torch.nan
    inputs["state"][1, 3:] = torch.nan
    inputs["expert_pixel_values"][~inputs["expert_view_mask"]] = torch.nan
    assert torch.equal(tiny_model.predict_actions(**inputs, noise=noise).actions, before)


def test_loss_averages_over_the_real_entries_only(tiny_model, tiny_processor, make_item, drawn):
    """Cutting the chunk after its real steps does not change which entries count or how."""
    ends = np.arange(8) >= 5
    tiny_model.config.chunk_end = "noise"
    batch = tiny_processor.collate([make_item(4, "arm", action_is_pad=ends)])
    velocity = []
    original = tiny_model.expert.predict_velocity
    tiny_model.expert.predict_velocity = lambda *a: velocity.append(original(*a)) or velocity[-1]
    loss = tiny_model(**batch, **row(drawn, 0)).action_loss
    target = batch["actions"] - drawn["noise"][:1]
    expected = (velocity[0] - target)[0, :5, :2].square().mean()
    torch.testing.assert_close(loss, expected)


def test_without_a_mask_all_steps_and_own_dimensions_count(tiny_model, tiny_processor, make_item, drawn):
    batch = tiny_processor.collate([make_item(4, "arm"), make_item(5)])
    given = {"noise": drawn["noise"][:2], "timestep": drawn["timestep"][:2]}
    full = tiny_model(**batch, **given).action_loss
    del batch["action_mask"]
    assert torch.equal(tiny_model(**batch, **given).action_loss, full)


@pytest.mark.parametrize("training", [False, True])
def test_a_processor_may_know_fewer_robots_than_the_model(make_model, tiny_processor, make_item, drawn, training):
    """Its batches are then narrower than the model's widest robot; nothing else changes."""
    model = make_model().train(training)
    item = make_item(4, "arm")
    wide = tiny_processor.collate([item])
    narrow = {**wide, "actions": wide["actions"][..., :2], "action_mask": wide["action_mask"][..., :2]}
    narrow["state"] = wide["state"][:, :3]
    expected = model(**wide, **row(drawn, 0))
    got = model(**narrow, **row(drawn, 0))
    assert torch.equal(got.loss, expected.loss)
    got = model(**narrow, noise=drawn["noise"][:1, :, :2], timestep=drawn["timestep"][:1])
    assert torch.equal(got.loss, expected.loss)


def test_inputs_that_do_not_belong_together_are_named(tiny_model, tiny_processor, make_item):
    batch = tiny_processor.collate([make_item(1), make_item(2)])
    for name in ("state", "embodiment_ids", "expert_pixel_values"):
        with pytest.raises(ValueError, match=f"{name}: missing"):
            tiny_model(**{**batch, name: None})
        with pytest.raises(ValueError, match=f"{name}: expected one row for each of the 2 samples, got 1"):
            tiny_model(**{**batch, name: batch[name][:1]})
    for name, width in (("actions", 13), ("actions", 15), ("action_mask", 2)):
        wrong = batch[name].new_zeros(2, 8, width)
        with pytest.raises(ValueError, match=rf"{name}: expected 14 dimensions .* got shape \(2, 8, {width}\)"):
            tiny_model(**{**batch, name: wrong})
    with pytest.raises(ValueError, match="expected 3 views"):
        tiny_model(**{**batch, "expert_pixel_values": batch["expert_pixel_values"][:, :2]})
    with pytest.raises(ValueError, match="expected one row for each of the 1 samples, got 2"):
        tiny_model.predict_actions(
            query_states=torch.zeros(1, 8, 64),
            **{k: batch[k] for k in ("state", "embodiment_ids", "expert_pixel_values")},
        )
    targets = ("labels", "actions", "action_mask")
    observations = {name: value for name, value in batch.items() if name not in targets}
    with pytest.raises(ValueError, match="noise: expected shape"):
        tiny_model.predict_actions(**observations, noise=torch.zeros(2, 8, 2))
    for name in targets:
        with pytest.raises(TypeError, match=f"unexpected argument '{name}'; it is a training target"):
            tiny_model.predict_actions(**observations, **{name: batch[name]})


def test_kept_query_states_act_without_the_vlm(tiny_model, tiny_processor, make_item, drawn):
    """Asynchronous use: the expert acts on new images and states with the last query states (section 3.1)."""
    noise = drawn["noise"][:1]
    first, second = (tiny_processor.collate([make_item(seed, actions=None)]) for seed in (1, 2))
    kept = tiny_model.predict_actions(**first, noise=noise)
    observation = {k: first[k] for k in ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")}
    again = tiny_model.predict_actions(**observation, query_states=kept.query_states, noise=noise)
    assert torch.equal(again.actions, kept.actions)
    moved = {k: second[k] for k in observation}
    assert not torch.equal(
        tiny_model.predict_actions(**moved, query_states=kept.query_states, noise=noise).actions, kept.actions
    )
