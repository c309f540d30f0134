"""What an episode remembers changes no answer, and saves the tokens and images that it says."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, StoppingCriteria

from syvla.modeling_syvla.episode_memory import EpisodeMemory

NEW, QUERIES, VIEWS = 12, 8, 3


class Watched:
    """Tokens of each pass of the VLM, and images that its encoder saw."""

    def __init__(self, model):
        self.passes, self.images = [], []
        vlm = model.vlm.model
        self._before(vlm.language_model.layers[0], lambda args, kw: self.passes.append(
            (args[0] if args else kw["hidden_states"]).shape[1]))  # fmt: skip
        self._before(
            vlm.visual, lambda args, kw: self.images.append(len(kw.get("grid_thw", args[-1] if args else None)))
        )

    def _before(self, module, note):
        module.register_forward_pre_hook(lambda _, args, kwargs: note(args, kwargs), with_kwargs=True)

    def take(self):
        seen = (list(self.passes), sum(self.images))
        self.passes.clear()
        self.images.clear()
        return seen


@pytest.fixture
def watched(tiny_model, tiny_processor):
    tiny_model.tokenizer = tiny_processor.tokenizer
    return Watched(tiny_model)


@pytest.fixture
def inputs(tiny_processor, make_item):
    return lambda seed=1, **changes: tiny_processor.collate(
        [make_item(seed, actions=None, **changes)], padding_side="left"
    )


@pytest.fixture
def think(tiny_model, watched, inputs):
    """Thinks about the observation of a seed, `NEW` tokens: (output, passes of the VLM, tokens of the prompt)."""

    def run(seed=1, memory=None, **options):
        given = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "num_steps": 1, **options}
        prompt = inputs(seed)
        output = tiny_model.predict_actions(**prompt, think=True, noise=torch.zeros(1, 8, 14), memory=memory, **given)
        return output, watched.take()[0], prompt["input_ids"].shape[1]

    return run


@pytest.fixture
def act(tiny_model, watched):
    """Acts without a thought: (output, passes, images)."""

    def run(prompt, memory=None):
        output = tiny_model.predict_actions(**prompt, num_steps=1, noise=torch.zeros(1, 8, 14), memory=memory)
        return output, *watched.take()

    return run


def assert_same(found, expected):
    if expected.thought_ids is not None:
        assert torch.equal(found.thought_ids, expected.thought_ids)
    assert found.thoughts == expected.thoughts
    torch.testing.assert_close(found.query_states, expected.query_states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.actions, expected.actions, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- thoughts


def with_thought(ids):
    return EpisodeMemory(thought=ids)


def test_a_thought_that_did_not_change_takes_one_pass(think):
    expected, passes, prompt = think()
    tail = 1 + QUERIES  # the end of the turn, which is put behind a thought that was cut, and the queries
    assert passes == [prompt] + [1] * (NEW - 1) + [1 + tail], "the last token of a thought goes with the queries"
    memory = EpisodeMemory()
    first, passes, _ = think(memory=memory)
    assert_same(first, expected)
    assert (passes, memory.accepted, memory.generated) == ([prompt] + [1] * (NEW - 1) + [1 + tail], 0, NEW)
    seen = EpisodeMemory(thought=memory.thought)  # another episode: the same thought, no prompt
    again, passes, _ = think(memory=seen)
    assert_same(again, expected)
    assert passes == [prompt + NEW, tail]
    assert (seen.accepted, seen.generated, seen.reused) == (NEW, 0, 0)


@pytest.mark.parametrize("right", [0, 1, 5, NEW - 1])
def test_tokens_count_up_to_the_first_that_differs(think, right):
    expected, *_ = think()
    wrong = expected.thought_ids.clone()
    wrong[0, right:] = (wrong[0, right:] + 1) % 400
    memory = with_thought(wrong)
    found, passes, prompt = think(memory=memory)
    assert_same(found, expected)
    assert (memory.accepted, memory.generated) == (right, NEW - right)
    assert passes == [prompt + NEW] + [1] * (NEW - right - 1) + [2 + QUERIES]
    assert torch.equal(memory.thought, expected.thought_ids)


@pytest.mark.parametrize("length", [3, NEW + 5])
def test_a_draft_that_is_shorter_or_longer_than_the_thought(think, length):
    expected, *_ = think()
    longer, *_ = think(max_new_tokens=NEW + 5, min_new_tokens=NEW + 5)
    memory = with_thought(longer.thought_ids[:, :length])
    found, passes, prompt = think(memory=memory)
    assert_same(found, expected)
    assert memory.accepted == min(length, NEW)
    assert passes[0] == prompt + min(length, NEW), "no token behind the limit is read"


def test_the_thoughts_of_an_episode_are_those_without_a_memory(think):
    """The scene changes, comes back, and stays: whole prompts and drafts in every combination."""
    memory = EpisodeMemory()
    for seed in (1, 2, 2, 3, 1, 1):
        expected, *_ = think(seed)
        assert_same(think(seed, memory)[0], expected)
        assert memory.accepted + memory.generated == NEW


def test_the_end_of_a_thought_and_what_steers_generation(think, tiny_model, monkeypatch):
    """The end token within the draft, processors that read the text so far, criteria that stop, a streamer that watches."""
    free, _, prompt = think()
    end = int(free.thought_ids[0, 4])
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model.generation_config, "eos_token_id", [end])
        ended, *_ = think(min_new_tokens=None)
        found, passes, _ = think(memory=with_thought(free.thought_ids), min_new_tokens=None)
    assert ended.thought_ids.shape[1] <= 5
    assert_same(found, ended)
    assert len(passes) == 2

    class AfterTokens(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= prompt + 6)

    class Watch:
        def __init__(self):
            self.tokens, self.ended = [], 0

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended += 1

    steered = {"logits_processor": [RepetitionPenaltyLogitsProcessor(1.3)], "stopping_criteria": [AfterTokens()]}
    plain, drafted = Watch(), Watch()
    expected, *_ = think(streamer=plain, **steered)
    assert_same(think(memory=with_thought(free.thought_ids), streamer=drafted, **steered)[0], expected)
    assert (drafted.tokens, drafted.ended) == (plain.tokens, 1)
    assert expected.thought_ids.shape[1] == 6


# ---------------------------------------------------------------- prompts


def test_only_what_changed_passes_the_vlm_again(act, inputs, tiny_processor):
    """Nothing, the instruction, the second image, the first: from there on, and images that did not change never again."""
    memory = EpisodeMemory()
    base = inputs()
    length = base["input_ids"].shape[1]
    image = base["input_ids"][0] == tiny_processor.image_token_id
    patches = len(base["pixel_values"]) // VIEWS
    first_of = [int(image.nonzero()[:, 0][n * int(image.sum()) // VIEWS]) for n in range(VIEWS)]

    def changed(number):
        pixels = base["pixel_values"].clone()
        pixels[number * patches] += 0.5
        return {**base, "pixel_values": pixels}

    other_text = {**base, "input_ids": base["input_ids"].clone()}
    place = int(image.nonzero()[-1]) + 3
    other_text["input_ids"][0, place] += 1
    calls = [  # prompt, tokens that pass the VLM, images that its encoder sees
        (base, length + QUERIES, VIEWS),
        (base, QUERIES, 0),
        (other_text, length + QUERIES - place, 0),
        (changed(1), length + QUERIES - first_of[1], VIEWS - 1),
        (changed(0), length + QUERIES - first_of[0], VIEWS),
        (changed(2), length + QUERIES - first_of[0], VIEWS),
        (changed(2), QUERIES, 0),
    ]
    for number, (prompt, tokens, images) in enumerate(calls):
        expected, *_ = act(prompt)
        found, passes, seen = act(prompt, memory)
        assert_same(found, expected)
        assert (sum(passes), seen) == (tokens, images), number
        assert memory.reused == length + QUERIES - tokens


def test_thoughts_and_actions_take_turns_on_one_memory(act, think, inputs):
    """The policy thinks at every other call; the prompt is shared by both."""
    memory = EpisodeMemory()
    for _ in range(2):
        assert_same(think(1, memory)[0], think(1)[0])
        assert_same(act(inputs(), memory)[0], act(inputs())[0])
        assert memory.reused == inputs()["input_ids"].shape[1]


def test_an_error_in_between_leaves_nothing_behind(act, inputs, tiny_model, monkeypatch):
    memory = EpisodeMemory()
    act(inputs(1), memory)
    layer = tiny_model.vlm.model.language_model.layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(layer.mlp, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            act(inputs(2), memory)
    act(inputs(1))  # the watched counts of the failed call
    assert_same(act(inputs(1), memory)[0], act(inputs(1))[0])


def test_padding_of_the_prompt_does_not_count(act, inputs):
    prompt = inputs()
    pad = torch.full((1, 3), 5)
    padded = {**prompt, "input_ids": torch.cat((pad, prompt["input_ids"]), dim=1),
              "attention_mask": torch.cat((0 * pad, prompt["attention_mask"]), dim=1)}  # fmt: skip
    memory = EpisodeMemory()
    assert_same(act(padded, memory)[0], act(prompt)[0])
    act(prompt, memory)
    assert memory.reused == prompt["input_ids"].shape[1]


def test_what_cannot_go_on_from_the_last_call_is_refused(think, tiny_model, tiny_processor, make_item, make_model):
    memory = with_thought(torch.tensor([[5, 6]]))
    with pytest.raises(
        ValueError, match="memory: thoughts from a draft are exact where they are greedy; pass do_sample"
    ):
        think(memory=memory, do_sample=True)
    with pytest.raises(ValueError, match="memory: stop_strings are not looked for in a draft"):
        think(memory=memory, stop_strings=["a"])
    two = tiny_processor.collate([make_item(seed, actions=None) for seed in (1, 2)], padding_side="left")
    with pytest.raises(ValueError, match="memory: it is of one episode, and there are 2 samples"):
        tiny_model.predict_actions(**two, memory=memory)
    one = {key: value[:1] for key, value in two.items() if key in ("state", "embodiment_ids") or "expert" in key}
    with pytest.raises(TypeError, match="'memory'; it may act on a thought, but there will be none"):
        tiny_model.predict_actions(query_states=torch.zeros(1, QUERIES, 64), memory=memory, **one)
    whole = make_model(conditioning="all_hidden_states", intention_decoupling=False)
    with pytest.raises(
        ValueError, match="memory: conditioning='all_hidden_states' reads the hidden states of the whole"
    ):
        whole.predict_actions(**tiny_processor.collate([make_item(1, actions=None)]), memory=memory)
    tiny_model.optimize_for_inference(static_thoughts=True)
    with pytest.raises(ValueError, match="memory: a key/value cache of fixed size cannot take tokens back"):
        think(memory=memory)
