"""The last layer's MLP runs on the tokens that are read, with the same result."""

import pytest
import torch
from pretrained_parts import build_vlm

from syvla.modeling_syvla.last_layer import LastMLP, read_in_last_layer, tokens_read

QUERIES = 8


@pytest.fixture
def rows(tiny_model):
    """Tokens that the MLP of each layer saw."""
    seen = [[] for _ in tiny_model.vlm.model.language_model.layers]
    for layer, counts in zip(tiny_model.vlm.model.language_model.layers, seen, strict=True):
        layer.mlp.up_proj.register_forward_pre_hook(lambda _, args, counts=counts: counts.append(
            args[0].shape[:-1].numel()))  # fmt: skip
    return seen


def test_query_states_are_the_same_from_query_tokens_alone(tiny_model, tiny_processor, unequal_items, rows):
    """A padded batch; `encode` reads all tokens, `predict_query_states` those of the queries."""
    items = [{k: v for k, v in item.items() if k not in ("actions", "thought")} for item in unequal_items]
    prompt = tiny_processor.collate(items, padding_side="left")
    prompt = {key: prompt[key] for key in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    queries = torch.full((3, QUERIES), tiny_model.config.query_token_id)
    whole = {**prompt, "input_ids": torch.cat((prompt["input_ids"], queries), 1),
             "attention_mask": torch.cat((prompt["attention_mask"], torch.ones_like(queries)), 1)}  # fmt: skip
    with torch.no_grad():
        expected = tiny_model.encode(**whole)[:, -QUERIES:]
    first, last = (list(counts) for counts in rows)
    assert first == last == [whole["input_ids"].numel()]
    states = tiny_model.predict_query_states(**prompt)[0]
    torch.testing.assert_close(states, expected, atol=1e-6, rtol=1e-6)
    assert [counts[1:] for counts in rows] == [[whole["input_ids"].numel()], [3 * QUERIES]]


def test_a_thought_reads_the_last_token_of_the_prompt(tiny_model, tiny_processor, make_item, rows):
    tiny_model.tokenizer = tiny_processor.tokenizer
    prompt = tiny_processor.collate([make_item(seed, actions=None) for seed in (1, 2)], padding_side="left")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_steps": 1, "think": True}
    thought = tiny_model.predict_actions(**prompt, **options).thought_ids
    length = prompt["input_ids"].shape[1]
    assert rows[0] == [2 * length, 2, 2, 2, 2 * (2 + QUERIES)]
    assert rows[1] == [2, 2, 2, 2, 2 * (2 + QUERIES)]
    vlm = tiny_model.vlm
    asked = {key: prompt[key] for key in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    logits = vlm(**asked, mm_token_type_ids=tiny_model._token_types(asked["input_ids"])).logits[:, -1]
    logits[:, tiny_model.config.query_token_id] = -torch.inf
    logits[:, tiny_model._end_token_ids()] = -torch.inf  # min_new_tokens
    assert torch.equal(logits.argmax(-1), thought[:, 0])


def test_training_and_passes_of_another_shape_are_whole(tiny_model):
    mlp = tiny_model.vlm.model.language_model.layers[-1].mlp
    assert type(mlp) is LastMLP
    x = torch.randn(2, 5, mlp.hidden_size if hasattr(mlp, "hidden_size") else mlp.up_proj.in_features)
    read = torch.zeros(2, 5, dtype=torch.bool)
    read[:, 3] = True
    whole = mlp(x)
    with tokens_read(read):
        torch.testing.assert_close(mlp(x), whole, msg="with gradients")
        with torch.no_grad():
            part = mlp(x)
            torch.testing.assert_close(mlp(x[:, :4]), whole[:, :4])
    torch.testing.assert_close(part[:, 3], whole[:, 3])
    assert part[:, :3].abs().max() == 0
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), whole)


def test_another_family_keeps_its_own():
    vlm = build_vlm("qwen3_vl", torch.float32)
    before = type(vlm.model.language_model.layers[-1].mlp)
    read_in_last_layer(vlm)
    assert type(vlm.model.language_model.layers[-1].mlp) is before
