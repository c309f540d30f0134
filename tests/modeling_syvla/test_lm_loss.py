"""The language loss is Qwen2.5-VL's own, computed at the labeled positions alone, and is weighed as configured."""

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from syvla.modeling_syvla.vlm_positions import use_right_image_positions


@pytest.fixture
def chats(tiny_processor, make_chat):
    items = [make_chat(1), make_chat(2, "Where is the red cube?", "at (3, 4), left of the bar", size=(64, 32))]
    return tiny_processor.collate(items)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_equal_those_of_qwen(tiny_model, tiny_processor, make_chat, side):
    """The same weights in `transformers`' own class, with logits at every position."""
    chats = tiny_processor.collate([make_chat(1), make_chat(2, answer="a red cube", size=(64, 32))], padding_side=side)
    qwen = Qwen2_5_VLForConditionalGeneration(tiny_model.config.vlm_config).eval()
    use_right_image_positions(qwen)  # older transformers place images wrongly
    qwen.load_state_dict(tiny_model.vlm.state_dict())
    expected = qwen(**chats).loss
    expected.backward()
    output = tiny_model(**chats)
    output.loss.backward()
    torch.testing.assert_close(output.lm_loss, expected, atol=1e-5, rtol=0)
    ours = dict(tiny_model.vlm.named_parameters())
    for name, p in qwen.named_parameters():
        torch.testing.assert_close(ours[name].grad, p.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_thoughts_are_learned_as_answers_are(tiny_model, tiny_processor, make_item):
    """Query placeholders behind the thought change nothing: the loss is Qwen's on prompt and thought."""
    batch = tiny_processor.collate([make_item(1, thought="reach the red cube")])
    qwen = Qwen2_5_VLForConditionalGeneration(tiny_model.config.vlm_config).eval()
    use_right_image_positions(qwen)  # older transformers place images wrongly
    qwen.load_state_dict(tiny_model.vlm.state_dict())
    length = int((batch["input_ids"][0] != tiny_processor.query_token_id).sum())
    short = {k: batch[k][:, :length] for k in ("input_ids", "attention_mask", "mm_token_type_ids", "labels")}
    images = {k: batch[k] for k in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(**batch).lm_loss, qwen(**short, **images).loss, atol=1e-5, rtol=0)


def test_logits_are_computed_where_there_are_labels_only(tiny_model, chats):
    seen = []
    tiny_model.vlm.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    tiny_model(**chats)
    assert seen == [((chats["labels"] != -100).sum(), 512)]


def test_without_labels_there_is_no_text_to_learn(tiny_model, tiny_processor, make_item):
    output = tiny_model(**tiny_processor.collate([make_item(1)]))
    assert output.lm_loss.item() == 0.0
    assert output.loss.item() == output.action_loss.item() > 0
    batch = tiny_processor.collate([make_item(1)])
    del batch["labels"]
    assert tiny_model(**batch).lm_loss is None


def test_losses_are_weighed_as_configured(make_model, tiny_processor, make_item):
    model = make_model(action_loss_weight=0.25, lm_loss_weight=3.0)
    output = model(**tiny_processor.collate([make_item(1, thought="reach")]))
    assert output.action_loss > 0
    assert output.lm_loss > 0
    torch.testing.assert_close(output.loss, 0.25 * output.action_loss + 3.0 * output.lm_loss)
