"""Query states: on the key/value cache, in a batch, or recomputed from scratch, they are the same numbers."""

import pytest
import torch
from transformers import LogitsProcessor

from syvla.modeling_syvla.configuration_syvla import TINY_TOKEN_IDS

END = TINY_TOKEN_IDS["<|im_end|>"]
IMAGE = TINY_TOKEN_IDS["<|image_pad|>"]
CONTINUE = 77  # any text token; a thought of these never ends by itself


class Dictate(LogitsProcessor):
    """Makes row i generate the tokens of thought i, whatever the model would say."""

    def __init__(self, thoughts: list[list[int]], prompt_length: int) -> None:
        self.thoughts, self.prompt_length = thoughts, prompt_length

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.prompt_length
        forced = torch.full_like(scores, -torch.inf)
        for row, thought in enumerate(self.thoughts):
            forced[row, thought[step] if step < len(thought) else CONTINUE] = 0.0
        return forced


@pytest.fixture
def observations(unequal_items):
    """Prompts of 3, 1 and 2 views with instructions of different lengths, no thoughts."""
    return [{key: item[key] for key in ("images", "text", "state", "embodiment")} for item in unequal_items]


def reference(model, ids: list[int], inputs) -> torch.Tensor:
    """Final hidden states of the last N positions: one unpadded pass of `transformers`' model, its own positions."""
    count = model.config.num_query_tokens
    ids = torch.tensor([[*ids, *[model.config.query_token_id] * count]])
    embeds = model.vlm.get_input_embeddings()(ids).clone()
    embeds[:, -count:] = model.action_queries.weight
    model.vlm.model.rope_deltas = None
    hidden = model.vlm.model(
        input_ids=ids,
        inputs_embeds=embeds,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == IMAGE).int(),
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
        use_cache=False,
    ).last_hidden_state
    return hidden[0, -count:]


def dictated(model, processor, observations, thoughts, side="left", **kwargs):
    inputs = processor.collate(observations, padding_side=side)
    dictate = Dictate(thoughts, inputs["input_ids"].shape[1])
    output = model.predict_actions(
        **inputs, think=True, tokenizer=processor.tokenizer, logits_processor=[dictate], **kwargs
    )
    return inputs, output


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_on_the_cache_equal_full_recomputation(tiny_model, tiny_processor, observations, side):
    """Thoughts of 3, 9 and 0 tokens in one batch; then one of them is cut by max_new_tokens."""
    thoughts = [[5, 6, 7, END], [*range(20, 29), END], [END]]
    for limit, expected in ((32, thoughts), (6, [thoughts[0], [*range(20, 26), END], thoughts[2]]), (1, None)):
        expected = expected or [[5, END], [20, END], [END]]
        _, output = dictated(tiny_model, tiny_processor, observations, thoughts, side, max_new_tokens=limit)
        for row, (observation, thought) in enumerate(zip(observations, expected, strict=True)):
            alone = tiny_processor.collate([observation])
            ids = [*alone["input_ids"][0].tolist(), *thought]
            torch.testing.assert_close(
                output.query_states[row], reference(tiny_model, ids, alone), atol=1e-4, rtol=0, msg=f"{limit=} {row=}"
            )


def test_reference_tells_the_mistakes_apart(tiny_model, tiny_processor, observations):
    """The tolerance above is far below what a wrong end token, length or position would change."""
    alone = tiny_processor.collate(observations[:1])
    prompt = alone["input_ids"][0].tolist()
    with torch.no_grad():
        right = reference(tiny_model, [*prompt, 5, 6, 7, END], alone)
        for wrong in ([5, 6, 7], [5, 6, 7, END, END], [5, 6, END], [5, 6, 7, CONTINUE]):
            assert (reference(tiny_model, [*prompt, *wrong], alone) - right).abs().max() > 1e-2


@torch.no_grad()
def test_thinking_reproduces_what_training_saw(tiny_model, tiny_processor, observations):
    """A generated thought gives the query states of a training sample that holds the same thought as text."""
    texts = ["reach the red cube", "lift", "move the left arm above the pad"]
    tokens = [tiny_processor.tokenizer(text)["input_ids"] + [END] for text in texts]
    _, output = dictated(tiny_model, tiny_processor, observations, tokens)
    assert output.thoughts == texts
    items = [{**item, "thought": text} for item, text in zip(observations, texts, strict=True)]
    trained = tiny_model(**tiny_processor.collate(items)).query_states
    torch.testing.assert_close(output.query_states, trained, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_without_thought_equal_full_recomputation(tiny_model, tiny_processor, observations, side):
    output = tiny_model.predict_actions(**tiny_processor.collate(observations, padding_side=side))
    assert output.thoughts is None
    for row, observation in enumerate(observations):
        alone = tiny_processor.collate([observation])
        expected = reference(tiny_model, alone["input_ids"][0].tolist(), alone)
        torch.testing.assert_close(output.query_states[row], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_end_of_text_also_ends_a_thought(tiny_model, tiny_processor, observations):
    """As in Qwen2.5-VL's generation config, which lists two end tokens."""
    end_of_text = TINY_TOKEN_IDS["<|endoftext|>"]
    tiny_model.generation_config.eos_token_id = [END, end_of_text]
    thoughts = [[5, 6, end_of_text], [7, END], [8, 9, 10, 11, END]]
    _, output = dictated(tiny_model, tiny_processor, observations, thoughts)
    for row, (observation, thought) in enumerate(zip(observations, thoughts, strict=True)):
        alone = tiny_processor.collate([observation])
        expected = reference(tiny_model, [*alone["input_ids"][0].tolist(), *thought], alone)
        torch.testing.assert_close(output.query_states[row], expected, atol=1e-4, rtol=0)
    assert output.thought_ids[0, 2:].tolist() == [end_of_text, END, END]


@torch.no_grad()
def test_state_of_an_earlier_call_does_not_leak(tiny_model, tiny_processor, observations):
    """Qwen2.5-VL keeps the last position offset on the module; another batch in between must not matter."""
    inputs = tiny_processor.collate(observations[:1])
    fresh = tiny_model.predict_actions(**inputs).query_states
    dictated(tiny_model, tiny_processor, observations, [[5, END], [6, 7, END], [END]])
    assert torch.equal(tiny_model.predict_actions(**inputs).query_states, fresh)
    training = tiny_processor.collate([{**observations[0], "thought": "lift"}])
    before = tiny_model(**training).query_states
    dictated(tiny_model, tiny_processor, observations[1:2], [[5, END]])
    assert torch.equal(tiny_model(**training).query_states, before)


def test_prompts_that_cannot_be_continued_are_refused(tiny_model, tiny_processor, observations):
    finished = tiny_processor.collate([{**observations[0], "thought": "lift"}])
    with pytest.raises(ValueError, match="already holds query tokens"):
        tiny_model.predict_actions(**finished, think=True, tokenizer=tiny_processor.tokenizer)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        tiny_model.predict_actions(**tiny_processor.collate(observations), think=True)
    with pytest.raises(ValueError, match="beam search"):
        tiny_model.predict_actions(
            **tiny_processor.collate(observations), think=True, num_beams=2, tokenizer=tiny_processor.tokenizer
        )
    with pytest.raises(ValueError, match="input_ids"):
        tiny_model.predict_actions()


def test_wrong_number_of_query_tokens_is_named(tiny_model, tiny_processor, make_item):
    tiny_processor.num_query_tokens = 5
    with pytest.raises(ValueError, match=r"expected 8 query tokens .* got 5"):
        tiny_model(**tiny_processor.collate([make_item()]))


def test_batch_of_prompts_with_and_without_thought_keeps_its_rows(tiny_model, tiny_processor, observations):
    """Thoughts may be given for some samples of a batch only; every row still gets its own query states."""
    items = [{**observations[0], "thought": "lift"}, observations[1]]
    together = tiny_model.predict_actions(**tiny_processor.collate(items, padding_side="left"), num_steps=1)
    for row, item in enumerate(items):
        alone = tiny_model.predict_actions(**tiny_processor.collate([item]), num_steps=1)
        torch.testing.assert_close(together.query_states[row], alone.query_states[0], atol=1e-4, rtol=0)
