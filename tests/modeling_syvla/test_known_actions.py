"""Simulated delay: the first actions clean and untrained, against a computation written out here."""

import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_solver import FlowSolver
from syvla.training.run.batches import draw_noise_and_time

DIM, STEPS = 3, 8


def make(**fields):
    torch.manual_seed(0)
    robots = {"arm": {"state_dim": DIM, "action_dim": DIM}}
    return SyVLAModel(SyVLAConfig.tiny(embodiments=robots, intention_decoupling=False, **fields)).eval()


def inputs(model, count=3):
    config = model.config
    side = config.expert_image_size
    generator = torch.Generator().manual_seed(1)
    observation = ExpertObservation(
        torch.randn(count, DIM, generator=generator),
        torch.zeros(count, dtype=torch.int64),
        torch.rand(count, len(config.views), 3, side, side, generator=generator),
        torch.ones(count, len(config.views), dtype=torch.bool),
    )
    states = torch.randn(count, config.num_query_tokens, config.vlm_config.text_config.hidden_size, generator=generator)
    actions, noise = (torch.randn(count, STEPS, DIM, generator=generator) for _ in range(2))
    return states, observation, actions, noise


def written_out_velocity(model, x, t, context, delay):
    """The expert's suffix with a time for each step: token k gets time 1 for k < d, the chunk's own otherwise."""
    expert = model.expert
    steps = torch.arange(STEPS)
    times = torch.where(steps[None] < delay[:, None], torch.ones(()), t[:, None])  # (B, T)
    offsets = torch.stack([expert.encode_times(times[:, k]) - expert.encode_times(t) for k in range(STEPS)], dim=1)
    return expert.velocity_at(x, expert.encode_times(t), context, None, offsets)


def test_the_loss_is_on_the_actions_after_the_delay():
    model = make(simulated_delay=5)
    states, observation, actions, noise = inputs(model)
    timestep, delay = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0, 2, 5])
    mask = torch.ones_like(actions, dtype=torch.bool)
    mask[2, 7:] = False  # and the end of an episode
    got, _ = model.action_loss(states, observation, actions, mask, noise, timestep, delay=delay)

    held = actions.clone()
    held[2, 7] = held[2, 6]
    t = timestep[:, None, None]
    x = (1 - t) * noise + t * held
    for row, d in enumerate(delay.tolist()):
        x[row, :d] = held[row, :d]
    context = model.encode_expert_context(states, observation)
    velocity = written_out_velocity(model, x, timestep, context, delay)
    error = (velocity - (held - noise)).square()
    expected = [error[row, d:].mean() for row, d in enumerate(delay.tolist())]
    torch.testing.assert_close(got, torch.stack(expected))

    plain, _ = model.action_loss(states, observation, actions, mask, noise, timestep)
    torch.testing.assert_close(got[0], plain[0])  # no delay: what it always was
    assert not torch.isclose(got[1], plain[1])


def test_what_is_known_changes_nothing_but_through_the_clean_actions():
    """The loss has no gradient by the known actions' velocity, and none of its target is noise of theirs."""
    model = make(simulated_delay=5)
    states, observation, actions, noise = inputs(model)
    timestep, delay = torch.full((3,), 0.5), torch.tensor([3, 3, 3])
    one, _ = model.action_loss(states, observation, actions, None, noise, timestep, delay=delay)
    other = noise.clone()
    other[:, :3] += 5
    two, _ = model.action_loss(states, observation, actions, None, other, timestep, delay=delay)
    torch.testing.assert_close(one, two)
    moved = actions.clone()
    moved[:, :3] += 1
    three, _ = model.action_loss(states, observation, moved, None, noise, timestep, delay=delay)
    assert not torch.isclose(one, three).any(), "the other steps read them"


def test_chunks_go_on_from_what_is_known():
    model = make(simulated_delay=5)
    states, observation, actions, noise = inputs(model)
    delay = torch.tensor([0, 2, 5])
    got = model.sample_actions(states, observation, noise=noise, known_actions=(actions, delay))
    for row, d in enumerate(delay.tolist()):
        assert torch.equal(got[row, :d], actions[row, :d])
    plain = model.sample_actions(states, observation, noise=noise)
    torch.testing.assert_close(got[0], plain[0])
    context = model.encode_expert_context(states, observation)
    x = noise.clone()
    solver = FlowSolver.of(model.config)
    for step in range(solver.num_steps):
        for row, d in enumerate(delay.tolist()):
            x[row, :d] = actions[row, :d]
        t = torch.full((3,), solver.times[step])
        velocity = written_out_velocity(model, x, t, context, delay)
        x = x + (solver.times[step + 1] - solver.times[step]) * velocity
    for row, d in enumerate(delay.tolist()):
        torch.testing.assert_close(got[row, d:], x[row, d:])


def test_training_draws_delays_by_the_sample_and_evaluation_none():
    config = SyVLAConfig.tiny(simulated_delay=3)
    batch = {"actions": torch.zeros(40, 8, config.max_action_dim), "embodiment_ids": torch.zeros(40, dtype=torch.int64)}
    counts = torch.zeros(1, 1, 2 + len(config.embodiments), dtype=torch.int64)
    counts[0, 0, 0] = 40
    draw_noise_and_time([batch], counts, 0, config, (5, 7))
    assert sorted(set(batch["delay"].tolist())) == [0, 1, 2, 3]
    plain = {key: batch[key] for key in ("actions", "embodiment_ids")}
    draw_noise_and_time([plain], counts, 0, SyVLAConfig.tiny(), (5, 7))
    assert "delay" not in plain
    assert torch.equal(plain["noise"], batch["noise"])
    assert torch.equal(plain["timestep"], batch["timestep"])
    model = make(simulated_delay=5)
    states, observation, actions, noise = inputs(model)
    fixed = (actions, None, noise, torch.full((3,), 0.5))
    assert torch.equal(
        model.action_loss(states, observation, *fixed)[0], model.action_loss(states, observation, *fixed)[0]
    )
    model.train()
    drawn = [model.action_loss(states, observation, *fixed)[0].sum().item() for _ in range(6)]
    assert len(set(drawn)) > 1


def test_what_would_have_no_effect_or_was_not_trained_is_refused():
    with pytest.raises(ValueError, match="simulated_delay: has no effect with action_head='l1_regression'"):
        SyVLAConfig.tiny(simulated_delay=2, action_head="l1_regression")
    with pytest.raises(ValueError, match="simulated_delay: expected 0 up to less than chunk_size=8, got 8"):
        SyVLAConfig.tiny(simulated_delay=8)
    model = make()
    states, observation, actions, noise = inputs(model)
    with pytest.raises(ValueError, match="trained with simulated_delay above 0"):
        model.sample_actions(
            states, observation, noise=noise, known_actions=(actions, torch.zeros(3, dtype=torch.int64))
        )
    with pytest.raises(ValueError, match="delay: expected 0 to 0 steps"):
        model.action_loss(
            states, observation, actions, None, noise, torch.ones(3), delay=torch.ones(3, dtype=torch.int64)
        )
