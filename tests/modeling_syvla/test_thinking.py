"""Limits of a thought and what may watch it: stopping criteria, a streamer, a budget of time, the sampler."""

import time

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from syvla.modeling_syvla.configuration_syvla import TINY_TOKEN_IDS

END = TINY_TOKEN_IDS["<|im_end|>"]


@pytest.fixture
def think(tiny_model, tiny_processor, make_item):
    """Thinks about one observation, or several; a thought never ends by itself."""
    tiny_model.tokenizer = tiny_processor.tokenizer

    def run(*seeds, **options):
        items = [make_item(seed, actions=None) for seed in seeds or (1,)]
        options = {"max_new_tokens": 12, "min_new_tokens": 12, "num_steps": 1, **options}
        noise = torch.zeros(len(items), 8, 14)
        return tiny_model.predict_actions(
            **tiny_processor.collate(items, padding_side="left"), think=True, noise=noise, **options
        )

    return run


class AfterTokens(StoppingCriteria):
    def __init__(self, count: int) -> None:
        self.count, self.seen = count, 0

    def __call__(self, input_ids, scores, **kwargs):
        self.seen += 1
        return torch.full((len(input_ids),), self.seen >= self.count)


@pytest.mark.parametrize("kind", [list, StoppingCriteriaList])
def test_stopping_criteria_end_the_thought_as_max_new_tokens_does(think, kind):
    stopped = think(stopping_criteria=kind([AfterTokens(5)]))
    limited = think(max_new_tokens=5, min_new_tokens=5)
    assert stopped.thought_ids.shape == (1, 5)
    assert torch.equal(stopped.thought_ids, limited.thought_ids)
    torch.testing.assert_close(stopped.query_states, limited.query_states)
    torch.testing.assert_close(stopped.actions, limited.actions)


def test_stop_strings_end_the_thought(think, tiny_processor):
    free = think()
    word = tiny_processor.tokenizer.decode(free.thought_ids[0, 3:4])
    stopped = think(stop_strings=[word], tokenizer=tiny_processor.tokenizer, min_new_tokens=None)
    assert stopped.thought_ids.shape[1] <= 4


def test_a_streamer_sees_the_thought_as_it_is_made(think, tiny_processor):
    class Collect(TextStreamer):
        def __init__(self, tokenizer):
            super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
            self.pieces, self.ended = [], 0

        def on_finalized_text(self, text, stream_end=False):
            self.pieces.append(text)
            self.ended += stream_end

    streamer = Collect(tiny_processor.tokenizer)
    output = think(streamer=streamer)
    assert "".join(streamer.pieces).strip() == output.thoughts[0]
    assert streamer.ended == 1
    assert torch.equal(output.thought_ids, think().thought_ids), "watching changes nothing"


def test_a_budget_of_time_ends_the_thought_and_the_robot_still_acts(think):
    class Slow(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            time.sleep(0.02)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    cut = think(1, 2, think_budget=0.1, max_new_tokens=200, min_new_tokens=200, stopping_criteria=[Slow()])
    length = cut.thought_ids.shape[1]
    assert 1 <= length < 20
    same = think(1, 2, max_new_tokens=length, min_new_tokens=length)
    torch.testing.assert_close(cut.query_states, same.query_states)
    assert cut.actions.isfinite().all()
    assert think(think_budget=60.0).thought_ids.shape[1] == 12


def test_a_sampled_thought_is_fixed_by_the_seed(think):
    def sampled(seed):
        torch.manual_seed(seed)
        return think(do_sample=True, temperature=5.0).thought_ids

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))


def test_a_prompt_without_pictures_is_thought_about(tiny_model, tiny_processor):
    """Text alone, in one call with and without the names of the missing pictures; the states are those of a plain pass."""
    chat = [{"role": "user", "content": [{"type": "text", "text": "what is 3 plus 4?"}]}]
    text = tiny_processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    prompt = tiny_processor.tokenizer(text, return_tensors="pt")["input_ids"]
    options = {"think": True, "max_new_tokens": 4, "tokenizer": tiny_processor.tokenizer, "do_sample": False}
    states, _, thoughts, ids = tiny_model.predict_query_states(prompt, **options)
    end = tiny_model.config.get_text_config().eos_token_id
    tail = [] if end in ids[0].tolist() else [end]
    queries = [tiny_model.config.query_token_id] * tiny_model.config.num_query_tokens
    whole = torch.cat((prompt[0], ids[0], torch.tensor(tail + queries)))[None]
    plain = tiny_model.select_query_states(tiny_model.encode(whole), whole)
    torch.testing.assert_close(states, plain, atol=1e-5, rtol=1e-4)
    assert len(thoughts) == 1
    for none in ({"pixel_values": None}, {"pixel_values": None, "image_grid_thw": None}):
        generated = tiny_model.generate(input_ids=prompt, max_new_tokens=4, do_sample=False, **none)
        assert torch.equal(generated[:, prompt.shape[1] :], ids)
