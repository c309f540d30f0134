"""Text: a SyVLA checkpoint answers exactly as `transformers`' own Qwen2.5-VL with the same weights."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from syvla.modeling_syvla import SyVLAForConditionalGeneration, SyVLAModel
from syvla.modeling_syvla.configuration_syvla import TINY_TOKEN_IDS
from syvla.modeling_syvla.vlm_positions import use_right_image_positions

QUERY = TINY_TOKEN_IDS["<|action_query|>"]
FREE = {"max_new_tokens": 12, "eos_token_id": None}  # never ends early, so that there is something to compare


@pytest.fixture
def tiny_model(tiny_model):
    """With stronger layers than at initialization, where a tied head only repeats the last token."""
    for name, p in tiny_model.vlm.model.named_parameters():
        if p.ndim == 2 and ".layers." in name:
            p.data.mul_(8.0)
    return tiny_model


@pytest.fixture
def qwen(tiny_model):
    """`transformers`' class, built by itself, with the weights of the tiny model's VLM."""
    model = Qwen2_5_VLForConditionalGeneration(tiny_model.config.vlm_config).eval()
    use_right_image_positions(model)  # older transformers place images wrongly
    model.load_state_dict(tiny_model.vlm.state_dict())
    return model


@pytest.fixture
def text_model(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "syvla")
    return SyVLAForConditionalGeneration.from_pretrained(tmp_path / "syvla")


@pytest.fixture
def inputs(tiny_processor, make_chat):
    """Two questions of unequal length about images of unequal size, left-padded."""
    chats = [make_chat(1), make_chat(2, "Where is the red cube? Point at it.", size=(64, 32))]
    texts = [tiny_processor.apply_chat_template(c["messages"][:1], add_generation_prompt=True) for c in chats]
    return tiny_processor(text=texts, images=[c["images"] for c in chats], padding=True, return_tensors="pt")


@pytest.mark.parametrize("which", ["text_model", "tiny_model"])
@pytest.mark.parametrize(
    "how",
    [{}, {"do_sample": True, "temperature": 1.3, "top_k": 30}, {"num_beams": 3}],
    ids=["greedy", "sampled", "beams"],
)
def test_generate_equals_qwen(request, qwen, inputs, which, how):
    model = request.getfixturevalue(which)
    torch.manual_seed(0)
    expected = qwen.generate(**inputs, **FREE, **how, suppress_tokens=[QUERY])
    torch.manual_seed(0)
    got = model.generate(**inputs, **FREE, **how)
    assert torch.equal(got, expected)
    answers = expected[:, inputs["input_ids"].shape[1] :]
    assert not torch.equal(answers[0], answers[1]), "the comparison would be empty if every answer were the same"


def test_images_matter_and_token_types_are_filled_in(text_model, inputs):
    """Qwen2.5-VL silently falls back to one-dimensional positions without mm_token_type_ids."""
    expected = text_model.generate(**inputs, **FREE, return_dict_in_generate=True, output_logits=True).logits[0]
    bare = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    for given in (bare, {**bare, "mm_token_type_ids": None}):
        got = text_model.generate(**given, **FREE, return_dict_in_generate=True, output_logits=True).logits[0]
        assert torch.equal(got, expected)
    ids = bare.pop("input_ids")
    for call in (
        lambda: text_model.generate(ids, **bare, **FREE),
        lambda: text_model.generate(inputs=ids, **bare, **FREE),
    ):
        assert torch.equal(call(), text_model.generate(**inputs, **FREE))
    blind = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
    got = text_model.generate(**blind, **FREE, return_dict_in_generate=True, output_logits=True).logits[0]
    assert (got - expected).abs().max() > 1e-3


@pytest.mark.parametrize("how", [{}, {"do_sample": True, "top_k": 1}], ids=["greedy", "top_k=1"])
def test_query_tokens_are_never_produced(tiny_model, qwen, inputs, how):
    """Even where the VLM alone would say nothing else."""
    for model in (tiny_model.vlm, qwen):
        hidden = model.model(**inputs).last_hidden_state[:, -1]
        direction = torch.linalg.lstsq(hidden, torch.full((2, 1), 50.0)).solution[:, 0]  # logit 50 after both prompts
        model.lm_head.weight.data[QUERY] = direction
    assert qwen.generate(**inputs, max_new_tokens=1)[:, -1].tolist() == [QUERY, QUERY]
    got = tiny_model.generate(**inputs, **FREE, **how)
    assert not (got == QUERY).any()


def test_a_callers_logits_processor_is_kept(text_model, inputs):
    def only_77(input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, 77] = 0.0
        return forced

    processors = [only_77]
    got = text_model.generate(**inputs, **FREE, logits_processor=processors)
    assert (got[:, inputs["input_ids"].shape[1] :] == 77).all()
    assert processors == [only_77], "the caller's list is not written to"


def test_generation_stops_at_the_end_token(text_model, inputs):
    end = TINY_TOKEN_IDS["<|im_end|>"]

    def end_after_two(input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, 77 if input_ids.shape[1] < inputs["input_ids"].shape[1] + 2 else end] = 0.0
        return forced

    got = text_model.generate(**inputs, max_new_tokens=12, logits_processor=[end_after_two])
    assert got[:, inputs["input_ids"].shape[1] :].tolist() == [[77, 77, end]] * 2


@torch.no_grad()
def test_forward_equals_qwen(text_model, qwen, inputs):
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    expected = qwen(**inputs, labels=labels)
    got = text_model(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}, labels=labels)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.loss, expected.loss)


@torch.no_grad()
def test_the_vlm_of_the_text_model_saves_a_plain_qwen_checkpoint(text_model, qwen, inputs, tmp_path):
    text_model.vlm.save_pretrained(tmp_path / "plain", save_original_format=False)
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "qwen2_5_vl"
    with safe_open(tmp_path / "plain" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith(("vlm.", "expert."))]  # noqa: SIM118
    for cls in (Qwen2_5_VLForConditionalGeneration, AutoModelForImageTextToText):
        loaded, info = cls.from_pretrained(tmp_path / "plain", output_loading_info=True)
        assert type(loaded) is Qwen2_5_VLForConditionalGeneration
        use_right_image_positions(loaded)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        torch.testing.assert_close(loaded(**inputs).logits, qwen(**inputs).logits, atol=1e-5, rtol=0)
        for name, value in qwen.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


def test_the_vlm_inside_the_policy_is_a_plain_qwen_model(tiny_model):
    assert type(tiny_model.vlm) is Qwen2_5_VLForConditionalGeneration
    assert tiny_model.get_input_embeddings() is tiny_model.vlm.model.language_model.embed_tokens
    assert tiny_model.get_output_embeddings() is tiny_model.vlm.lm_head


def test_answering_from_a_saved_checkpoint_as_users_do(tiny_model, tiny_processor, make_chat, tmp_path):
    """The lines of a visual question: auto classes, apply_chat_template, generate, decode."""
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    from PIL import Image

    picture = Image.fromarray(make_chat(3)["images"][0])
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**inputs, max_new_tokens=5)
    text = processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(text[0], str)
    assert torch.equal(SyVLAModel.from_pretrained(tmp_path).generate(**inputs, max_new_tokens=5), answer)


def test_answers_in_a_batch_equal_single_answers(text_model, tiny_processor, make_chat):
    """Questions of unequal length about images of unequal size, and one without an image."""
    chats = [make_chat(1), make_chat(2, "Where is the small red cube, and what is beside it?", size=(64, 32))]
    prompts = [[chat["messages"][0]] for chat in chats] + [[{"role": "user", "content": "Hello"}]]
    texts = [tiny_processor.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    images = [chat["images"][0] for chat in chats]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    batch = tiny_processor(text=texts, images=images, padding=True, return_tensors="pt")
    together = text_model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, text in enumerate(texts):
        alone = tiny_processor(text=text, images=images[row : row + 1] or None, return_tensors="pt")
        answer = text_model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
        assert together[row].tolist() == answer.tolist(), row
