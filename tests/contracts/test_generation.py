"""Text by every road that `generate` has; the reference is a loop over `forward` without a cache."""

import pytest
import torch
from contract_subjects import QWEN, TEXT, text_batch
from transformers import TextIteratorStreamer

pytestmark = pytest.mark.applies(lambda subject: subject.can_generate)
NEW = 6
FREE = {"max_new_tokens": NEW, "eos_token_id": None, "do_sample": False}


def prompt():
    return {name: tensor for name, tensor in text_batch().items() if name != "labels"}


def vlm_of(subject, model):
    return getattr(model, "vlm", model)


@torch.no_grad()
def greedy_without_cache(vlm, forbidden=488):
    """Each next token from one forward over all tokens so far; the query token is never produced."""
    inputs = prompt()
    for _ in range(NEW):
        logits = vlm(**inputs).logits[:, -1]
        logits[:, forbidden] = -torch.inf
        chosen = logits.argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat((inputs["input_ids"], chosen), dim=1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.cat((inputs[name], torch.full_like(chosen, value).to(inputs[name].dtype)), dim=1)
    return inputs["input_ids"]


@pytest.mark.parametrize(
    "how",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 1, "return_dict_in_generate": True}],
    ids=["dynamic_cache", "no_cache", "static_cache", "dictionary"],
)
def test_greedy_text_equals_forwards_without_cache(subject, how):
    model = subject.model()
    got = model.generate(**prompt(), **FREE, **how)
    assert torch.equal(
        got if isinstance(got, torch.Tensor) else got.sequences, greedy_without_cache(vlm_of(subject, model))
    )


def test_left_padding_changes_no_token(subject):
    model, inputs = subject.model(), prompt()
    expected = model.generate(**inputs, **FREE)[:, -NEW:]
    rows = len(inputs["input_ids"])
    padded = {
        **inputs,
        "input_ids": torch.cat((torch.full((rows, 3), 480), inputs["input_ids"]), dim=1),
        "attention_mask": torch.cat((torch.zeros(rows, 3, dtype=torch.long), inputs["attention_mask"]), dim=1),
        "mm_token_type_ids": torch.cat(
            (torch.zeros(rows, 3, dtype=torch.int), inputs["mm_token_type_ids"].int()), dim=1
        ),
    }
    assert torch.equal(model.generate(**padded, **FREE)[:, -NEW:], expected)


def test_beams_of_one_row_equal_those_of_the_batch(subject):
    model, inputs = subject.model(), prompt()
    both = model.generate(**inputs, **FREE, num_beams=3)
    first = {k: v[:1] for k, v in inputs.items() if k != "pixel_values"} | {"pixel_values": inputs["pixel_values"][:16]}
    assert torch.equal(model.generate(**first, **FREE, num_beams=3), both[:1])
    assert model.generate(**first, **FREE, num_beams=3, num_return_sequences=3).shape[0] == 3


def test_assisted_decoding_gives_the_same_text(subject):
    model = subject.model()
    one = {k: v[:1] for k, v in prompt().items() if k != "pixel_values"} | {
        "pixel_values": prompt()["pixel_values"][:16]
    }
    expected = model.generate(**one, **FREE)
    assert torch.equal(model.generate(**one, **FREE, prompt_lookup_num_tokens=2), expected)


@pytest.mark.parametrize("assistant", ["same_weights", "other_weights", "plain_qwen"])
@pytest.mark.parametrize("images", [True, False], ids=["images", "text"])
def test_an_assistant_model_changes_no_token_of_greedy_text(subject, assistant, images):
    inputs = {k: v[:1] for k, v in prompt().items() if k != "pixel_values"}
    if images:
        inputs["pixel_values"] = prompt()["pixel_values"][:16]
    else:
        inputs = {k: inputs[k][:, 6:] for k in ("input_ids", "attention_mask")}
    model, draft = (
        subject.model(),
        QWEN.model(1) if assistant == "plain_qwen" else subject.model(assistant != "same_weights"),
    )
    expected = model.generate(**inputs, **FREE)
    calls = []
    vlm_of(subject, draft).register_forward_hook(lambda *_: calls.append(1))
    forwards = []
    vlm_of(subject, model).register_forward_hook(lambda *_: forwards.append(1))
    assert torch.equal(model.generate(**inputs, **FREE, assistant_model=draft), expected)
    assert calls
    if assistant == "same_weights" and not images:
        assert len(forwards) < NEW  # drafts are accepted


def test_a_streamer_gets_every_token(subject):
    from syvla.processing import build_tiny_processor

    tokenizer = build_tiny_processor().tokenizer
    model = subject.model()
    one = {k: v[:1] for k, v in prompt().items() if k != "pixel_values"} | {
        "pixel_values": prompt()["pixel_values"][:16]
    }
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    ids = model.generate(**one, **FREE, streamer=streamer)[0, -NEW:]
    assert "".join(streamer) == tokenizer.decode(ids)


@torch.no_grad()
def test_logits_to_keep_gives_the_last_ones(subject):
    if subject.name == "SyVLAModel":
        pytest.skip("SyVLAModel's forward gives losses and query states; its logits stay inside")
    model = subject.model()
    whole = model(**prompt()).logits
    torch.testing.assert_close(model(**prompt(), logits_to_keep=2).logits, whole[:, -2:], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.applies(lambda subject: subject.can_generate and subject.name != "SyVLAModel")
def test_a_cache_is_given_and_taken_back_under_both_names(subject):
    model, inputs = subject.model(), prompt()
    ids = inputs["input_ids"][:, 6:]  # text alone, whose positions need no images
    expected = model(input_ids=ids).logits
    first = model(input_ids=ids[:, :5], use_cache=True)
    cache = getattr(first, "cache", None) or first.past_key_values
    second = model(input_ids=ids[:, 5:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(second.logits, expected[:, 5:], rtol=1e-4, atol=1e-4)


@pytest.mark.applies(lambda subject: subject is TEXT)
def test_a_cache_under_both_names_at_once_is_refused(subject):
    with pytest.raises(TypeError, match="two names of the same argument"):
        subject.model()(**prompt(), past_key_values=object(), cache=object())
