"""What the page says about the inside of a policy is what the model computes."""

import pytest
import torch

from syvla.evaluation.play import introspection
from syvla.evaluation.play.introspection import expert_attention, query_decoupling, recorded_attention
from syvla.modeling_syvla.expert_inputs import ExpertObservation


@pytest.fixture
def sample(tiny_model):
    """Query states, observation, chunk and noise of one sample of robot `tabletop`."""
    torch.manual_seed(1)
    config = tiny_model.config
    queries = torch.randn(1, config.num_query_tokens, 64)
    pixels = torch.randn(1, 3, 3, 32, 32)
    observation = ExpertObservation(
        torch.randn(1, 14), torch.zeros(1, dtype=torch.long), pixels, torch.ones(1, 3).bool()
    )
    return queries, observation, torch.randn(1, 8, 14), torch.randn(1, 8, 14)


def test_shares_of_attention_sum_to_one(tiny_model, sample):
    seen = expert_attention(tiny_model, *sample)
    assert sum(seen.views.values()) + seen.state + seen.chunk == pytest.approx(1, abs=1e-5)
    assert sum(seen.queries) == pytest.approx(1, abs=1e-5)
    assert list(seen.views) == list(tiny_model.config.views)
    assert len(seen.queries) == tiny_model.config.num_query_tokens


def test_a_missing_view_gets_no_attention(tiny_model, sample):
    queries, observation, actions, noise = sample
    without = ExpertObservation(
        observation.state, observation.embodiment_ids, observation.pixel_values, torch.tensor([[True, False, True]])
    )
    views = expert_attention(tiny_model, queries, without, actions, noise).views
    assert views["left_wrist"] == 0.0
    assert views["center"] > 0


def test_attention_to_equal_keys_is_even_and_the_result_stays(tiny_model, sample):
    """Equal query states have equal keys, so each of N gets 1 / N, whatever the weights are."""
    queries, observation, actions, noise = sample
    even = queries[:, :1].expand_as(queries)
    shares = expert_attention(tiny_model, even, observation, actions, noise).queries
    assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=1e-5)
    context = tiny_model.encode_expert_context(queries, observation)
    time = torch.full((1,), 0.5)
    with torch.no_grad():
        plain = tiny_model.expert.predict_velocity(noise, time, context)
        with recorded_attention() as weights:
            recorded = tiny_model.expert.predict_velocity(noise, time, context)
    assert torch.equal(plain, recorded)
    assert len(weights) == 2 * tiny_model.config.expert_config.num_hidden_layers


def test_the_mask_is_that_of_a_training_step(tiny_model, sample, monkeypatch):
    """With one draw, the states that training zeroes for the same noise and time."""
    monkeypatch.setattr(introspection, "DECOUPLING_DRAWS", 1)
    queries, observation, actions, _ = sample
    found = query_decoupling(tiny_model, queries, observation, actions, seed=5)
    noise = torch.randn((1, 8, 14), generator=torch.Generator().manual_seed(5))
    time = torch.tensor([0.5 * tiny_model.config.time_max])
    tiny_model.train()
    _, kept = tiny_model.action_loss(queries, observation, actions, None, noise, time)
    assert found.kept == kept[0].tolist()
    assert found.kept.count(False) == 1, "5% of 8 states: the weakest"
    assert found.norms.index(min(found.norms)) == found.kept.index(False)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_a_model_without_expert_is_refused(make_model, sample):
    model = make_model(action_head="l1_regression")
    with pytest.raises(ValueError, match="action_head: expected 'flow_matching'"):
        query_decoupling(model, *sample[:3])
