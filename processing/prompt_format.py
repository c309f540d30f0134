"""Text of a SyVLA sample: chat template, robot prompt and which tokens carry loss. Ships with checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUERY_TOKEN = "<|action_query|>"

ADVANTAGES = ("positive", "negative", "none")
"""What a prompt of an advantage-conditioned policy may say of the actions that follow (RECAP, pi*0.6); "none" says nothing."""

_UNREADABLE = (
    "{{ raise_exception('SyVLA reads text and images, answers in text; got a part with ' + part | join(', ')) }}"
)

# Renders what Qwen2.5-VL's own template renders for texts and images; `generation` marks the answers.
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.tool_calls -%}{{ raise_exception('SyVLA answers in text; got tool_calls') }}{%- endif -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' -%}{%- generation -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if 'text' in part -%}{{ part.text }}{%- else -%}" + _UNREADABLE + "{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>' }}{%- endgeneration -%}{{ '\n' }}"
    "{%- else -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part -%}{{ part.text }}"
    "{%- else -%}" + _UNREADABLE + "{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def robot_messages(views: list[str], instruction: str, advantage: str = "none") -> list[dict[str, Any]]:
    """Chat with one named image per view and the instruction last, after it one of `ADVANTAGES`."""
    content: list[dict[str, str]] = []
    for view in views:
        content.append({"type": "text", "text": f"{view.replace('_', ' ')} view: "})
        content.append({"type": "image"})
        content.append({"type": "text", "text": "\n"})
    indicator = "" if advantage == "none" else f"\nAdvantage: {advantage}"
    content.append({"type": "text", "text": instruction + indicator})
    return [{"role": "user", "content": content}]


def item_messages(
    item: Mapping[str, Any], views: list[str], tokenizer: Any, advantage_conditioned: bool = False
) -> list[dict[str, Any]]:
    """The chat of an item: its own messages, or a robot's instruction with its views and, where it has one, its thought.

    Args:
        item: As `SyVLAProcessor.collate` takes it.
        views: Names of its views.
        tokenizer: Whose control tokens texts may not hold.
        advantage_conditioned: Whether prompts say how good the actions are; an item that does not say is "positive", as
            demonstrations are, and as a policy is asked to act.

    Raises:
        ValueError: If a text is no string or holds control tokens, or `advantage` is unknown or of no use.
    """
    if "messages" in item:
        return checked_messages(item["messages"], tokenizer)
    require_plain_text("text", item["text"], tokenizer)
    messages = robot_messages(views, item["text"], item_advantage(item, advantage_conditioned))
    if item.get("thought") is not None:
        require_plain_text("thought", item["thought"], tokenizer)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": item["thought"].strip()}]})
    return messages


def item_advantage(item: Mapping[str, Any], advantage_conditioned: bool) -> str:
    """Which of `ADVANTAGES` an item's prompt says."""
    said = item.get("advantage")
    if said is None:
        return "positive" if advantage_conditioned else "none"
    if said not in ADVANTAGES:
        raise ValueError(f"advantage: expected one of {', '.join(ADVANTAGES)}, got {said!r}")
    if not advantage_conditioned:
        raise ValueError(
            f"advantage: {said!r} has no meaning for this checkpoint, which was not trained with it (advantage_conditioned "
            "is false); leave it out"
        )
    return str(said)


def checked_messages(messages: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Checks the texts of a chat for control tokens and strips outer whitespace from its answers.

    Stripping is needed because the tokenizer merges a line break at the start of an answer with the one that ends the role.
    The answer would then begin with another token than `generate` produces, and `answer_labels` would not find it.

    Raises:
        ValueError: If a text is no string or holds control tokens; the error names the message.
    """
    checked = []
    for i, message in enumerate(messages):
        require_plain_text(f"messages[{i}].role", message["role"], tokenizer)
        content, answers = message["content"], message["role"] == "assistant"
        parts = [{"type": "text", "text": content}] if not isinstance(content, (list, tuple)) else list(content)
        for part in parts:
            if "text" in part:
                require_plain_text(f"messages[{i}]", part["text"], tokenizer)
        if answers:
            answer = "".join(part["text"] for part in parts if "text" in part).strip()
            parts = [part for part in parts if "text" not in part] + [{"type": "text", "text": answer}]
        checked.append({**message, "content": parts})
    return checked


def answer_labels(ids: list[int], tokenizer: Any, query_token_id: int) -> list[int]:
    """Labels of a token sequence: assistant answers with their end token; -100 elsewhere and on query tokens.

    Answers are found by their control tokens, which `require_plain_text` and `checked_messages` keep out of other text.
    """
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    role = tokenizer("assistant\n", add_special_tokens=False)["input_ids"]
    labels = [-100] * len(ids)
    position = 0
    while position < len(ids):
        if ids[position] != start or ids[position + 1 : position + 1 + len(role)] != role:
            position += 1
            continue
        position += 1 + len(role)
        answer = position
        while position < len(ids) and ids[position] not in (end, query_token_id):
            position += 1
        if position < len(ids) and ids[position] == end:
            position += 1
            labels[answer:position] = ids[answer:position]
    return labels


def require_plain_text(name: str, text: Any, tokenizer: Any) -> None:
    """Raise ValueError unless `text` is a string without control tokens."""
    if not isinstance(text, str):
        raise ValueError(f"{name}: expected a string, got {type(text).__name__}")
    if "<|" in text:
        found = [token for token in tokenizer.get_added_vocab() if token in text]
        if found:
            raise ValueError(f"{name}: holds the control tokens {found}, which would change the prompt; remove them")
