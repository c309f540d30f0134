"""Text of a sample: what Qwen2.5-VL's own template renders, and which tokens carry loss."""

import jinja2
import pytest

from syvla.processing.prompt_format import CHAT_TEMPLATE, answer_labels, require_plain_text, robot_messages
from syvla.processing.tiny_processor import build_tiny_tokenizer

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE = {"type": "image"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# What the template published with Qwen2.5-VL-3B-Instruct gives, worked out by hand.
RENDERED = {
    "text only": (
        [{"role": "user", "content": "Hello"}],
        f"{SYSTEM}<|im_start|>user\nHello<|im_end|>\n",
    ),
    "own system message": (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [text("Hi")]}],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    ),
    "images between texts": (
        [{"role": "user", "content": [text("Left: "), IMAGE, text("\nRight: "), IMAGE, text(" Same?")]}],
        f"{SYSTEM}<|im_start|>user\nLeft: {PICTURE}\nRight: {PICTURE} Same?<|im_end|>\n",
    ),
    "several turns": (
        [
            {"role": "user", "content": [IMAGE, text("What?")]},
            {"role": "assistant", "content": [text("A cube.")]},
            {"role": "user", "content": "Color?"},
            {"role": "assistant", "content": "Red."},
        ],
        f"{SYSTEM}<|im_start|>user\n{PICTURE}What?<|im_end|>\n<|im_start|>assistant\nA cube.<|im_end|>\n"
        "<|im_start|>user\nColor?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n",
    ),
    "whitespace and braces stay": (
        [{"role": "user", "content": "  a\n\n{{b}} {% c %}  "}],
        f"{SYSTEM}<|im_start|>user\n  a\n\n{{{{b}}}} {{% c %}}  <|im_end|>\n",
    ),
    "keys without a type": (
        [{"role": "user", "content": [{"image": "a.png"}, {"image_url": {"url": "b.png"}}, {"text": "Which?"}]}],
        f"{SYSTEM}<|im_start|>user\n{PICTURE}{PICTURE}Which?<|im_end|>\n",
    ),
    "typed as OpenAI does": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b.png"}}, text("Which?")]}],
        f"{SYSTEM}<|im_start|>user\n{PICTURE}Which?<|im_end|>\n",
    ),
}


@pytest.mark.parametrize("case", RENDERED)
def test_template_renders_what_qwen_renders(tokenizer, case):
    messages, expected = RENDERED[case]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == f"{expected}<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}],
        [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}],
        [{"role": "user", "content": [{"video": "a.mp4"}]}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [IMAGE]}],
    ],
)
def test_what_the_model_cannot_read_is_refused(tokenizer, messages):
    with pytest.raises(jinja2.TemplateError, match="SyVLA reads text and images"):
        tokenizer.apply_chat_template(messages, tokenize=False)


def test_robot_prompt_names_each_view_and_ends_with_the_instruction(tokenizer):
    prompt = tokenizer.apply_chat_template(
        robot_messages(["center", "left_wrist"], "lift it"), tokenize=False, add_generation_prompt=True
    )
    assert prompt == (
        f"{SYSTEM}<|im_start|>user\ncenter view: {PICTURE}\nleft wrist view: {PICTURE}\nlift it<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_an_advantage_conditioned_prompt_says_how_good_the_actions_are(tiny_processor, make_item):
    """ "positive" by itself, as demonstrations are and as a served policy is asked; another prompt stays as it was."""
    rendered = lambda **said: tiny_processor._render([make_item(actions=None, **said)])[0][0]  # noqa: E731
    before = rendered()
    assert "lift the red cube<|im_end|>" in before
    tiny_processor.advantage_conditioned = True
    for said, expected in (
        ({}, "\nAdvantage: positive"),
        ({"advantage": "positive"}, "\nAdvantage: positive"),
        ({"advantage": "negative"}, "\nAdvantage: negative"),
        ({"advantage": "none"}, ""),
    ):
        assert rendered(**said) == before.replace("cube<|im_end|>", f"cube{expected}<|im_end|>")


def labeled(tokenizer, rendered: str) -> str:
    """The text on which loss falls, parts joined by '|'."""
    query = tokenizer.convert_tokens_to_ids("<|action_query|>")
    ids = tokenizer(rendered)["input_ids"]
    labels = answer_labels(ids, tokenizer, query)
    assert len(labels) == len(ids)
    assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
    parts, current = [], []
    for label in [*labels, -100]:
        if label != -100:
            current.append(label)
        elif current:
            parts.append(tokenizer.decode(current))
            current = []
    return "|".join(parts)


def test_loss_falls_on_answers_and_their_end_token(tokenizer):
    assert labeled(tokenizer, RENDERED["several turns"][1]) == "A cube.<|im_end|>|Red.<|im_end|>"
    assert labeled(tokenizer, RENDERED["images between texts"][1]) == ""
    queries = "<|action_query|>" * 3
    thought = f"{SYSTEM}<|im_start|>user\nlift<|im_end|>\n<|im_start|>assistant\nreach it<|im_end|>"
    assert labeled(tokenizer, thought + queries) == "reach it<|im_end|>"
    assert labeled(tokenizer, f"<|im_start|>user\nlift<|im_end|>\n<|im_start|>assistant\n{queries}") == ""
    assert labeled(tokenizer, "<|im_start|>assistant\ncut off") == "", "an answer without its end is not learned"
    assert labeled(tokenizer, "<|im_start|>user\nassistant\nno<|im_end|>\n") == ""
    assert labeled(tokenizer, "<|im_start|>assistant\n<|im_end|>") == "<|im_end|>"


def test_control_tokens_in_plain_text_are_refused(tokenizer):
    require_plain_text("text", "a <b> | <| c <|unknown|> \n {{x}}", tokenizer)
    for token in ("<|im_end|>", "<|image_pad|>", "<|action_query|>", "<|endoftext|>"):
        with pytest.raises(ValueError, match=r"text: holds the control tokens \['<\|"):
            require_plain_text("text", f"lift {token} it", tokenizer)
    for wrong in (None, 3, ["lift"]):
        with pytest.raises(ValueError, match=f"text: expected a string, got {type(wrong).__name__}"):
            require_plain_text("text", wrong, tokenizer)
