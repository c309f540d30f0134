"""Thoughts on a cache of fixed size: the same tokens and query states, plain and compiled; other shapes fall back."""

import copy
import shutil

import pytest
import torch

from syvla.modeling_syvla.static_thoughts import StaticThoughts


@pytest.fixture
def think(tiny_model, tiny_processor, make_item):
    tiny_model.tokenizer = tiny_processor.tokenizer

    def run(*texts, **options):
        items = [make_item(seed, text=text, actions=None) for seed, text in enumerate(texts or ("lift", "lift it now"))]
        inputs = tiny_processor.collate(items, padding_side="left")
        given = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
        options = {"max_new_tokens": 10, "min_new_tokens": 10, **options}
        states, _, thoughts, ids = tiny_model.predict_query_states(**given, think=True, **options)
        return states, thoughts, ids

    return run


def same(one, other) -> bool:
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=0)
    return one[1] == other[1] and torch.equal(one[2], other[2])


@pytest.mark.parametrize("options", [{}, {"min_new_tokens": None, "max_new_tokens": 40}, {"max_new_tokens": 1}])
def test_a_static_cache_changes_neither_thought_nor_query_states(tiny_model, think, options):
    options = {"min_new_tokens": 1, **options}
    growing = think(**options)
    tiny_model.static_thoughts = StaticThoughts(compile=False)
    for _ in range(2):  # the second thought finds the cache used
        assert same(think(**options), growing)
    assert len(tiny_model.static_thoughts._caches) == 1


def test_an_early_end_token_is_handled_on_the_static_cache(tiny_model, think):
    end = tiny_model._end_token_ids()[0]

    def end_after_three(batch, ids):  # the first sample ends, the second goes on
        done = batch == 0 and end_after_three.seen > 6
        end_after_three.seen += 1
        return [end] if done else list(range(40, 60))

    end_after_three.seen = 0
    growing = think(prefix_allowed_tokens_fn=end_after_three, min_new_tokens=None)
    tiny_model.static_thoughts = StaticThoughts(compile=False)
    end_after_three.seen = 0
    assert same(think(prefix_allowed_tokens_fn=end_after_three, min_new_tokens=None), growing)
    assert (growing[2][0] == end).any()
    assert not (growing[2][1] == end).any()


def test_similar_prompts_share_a_cache_and_other_shapes_get_a_growing_one(tiny_model, think, caplog):
    expected = think("lift"), think("lift", "lift")
    tiny_model.static_thoughts = StaticThoughts(compile=False)
    assert same(think("lift"), expected[0])
    think("lift the cube")
    cache = next(iter(tiny_model.static_thoughts._caches.values()))
    for _ in range(2):
        assert same(think("lift", "lift"), expected[1])
    assert list(tiny_model.static_thoughts._caches.values()) == [cache]
    messages = [r.getMessage() for r in caplog.records if r.name == "syvla.modeling_syvla.static_thoughts"]
    assert len(messages) == 1
    assert "got batch 2" in messages[0]
    assert "max_shapes=1" in messages[0]
    tiny_model.static_thoughts.strict = True
    with pytest.raises(RuntimeError, match="static caches exist for batch 1"):
        think("lift", "lift")


def test_a_thread_that_finds_the_caches_in_use_thinks_without_them(tiny_model, think):
    expected = think()
    tiny_model.static_thoughts = StaticThoughts(compile=False)
    with tiny_model.static_thoughts.reserve_cache(tiny_model.vlm, torch.zeros(1, 3, dtype=torch.long), 9):
        assert same(think(), expected)
    assert [shape[0] for shape in tiny_model.static_thoughts._caches] == [1]


def test_copies_have_caches_of_their_own(tiny_model, think):
    tiny_model.static_thoughts = StaticThoughts(3, compile=False)
    think()
    copied = copy.deepcopy(tiny_model).static_thoughts
    assert (copied.max_shapes, copied.compile, copied._caches) == (3, False, {})


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_decoding_thinks_the_same(tiny_model, think):
    growing = think("lift", max_new_tokens=6, min_new_tokens=6)
    tiny_model.static_thoughts = StaticThoughts()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert same(think("lift", max_new_tokens=6, min_new_tokens=6), growing)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > graphs
    assert same(think("lift", max_new_tokens=6, min_new_tokens=6), growing)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled, "the second thought compiles nothing"
