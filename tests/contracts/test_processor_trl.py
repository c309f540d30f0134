"""TRL's collator for vision-language models gives the same batches with our processor as with Qwen2.5-VL's."""

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from qwen_processor import qwen_processor

sft = pytest.importorskip("trl.trainer.sft_trainer", reason="TRL is not installed")

masks_of_qwen = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="TRL asks for transformers 5.18, whose masks know images",
)
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 64, 3), dtype=np.uint8))
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def conversations() -> list[dict]:
    return [
        {"images": [PICTURE], "messages": [said("user", "What is it?"), said("assistant", "A red cube."),
                                           said("user", "Where is it?"), said("assistant", "On the table.")]},
        {"images": [PICTURE, PICTURE], "messages": [said("user", "Do they differ?"), said("assistant", "No.")]},
    ]  # fmt: skip


def texts() -> list[dict]:
    return [
        {"images": [], "text": "lift the red cube from the table to the pad with both arms, then release it slowly"},
        {"images": [], "text": "lift"},
    ]


def completions() -> list[dict]:
    return [{"images": [PICTURE], "prompt": [said("user", "What is it?")], "completion": [said("assistant", "A cube.")]},
            {"images": [PICTURE], "prompt": [said("user", "Where?")], "completion": [said("assistant", "Here.")]}]  # fmt: skip


CASES = {
    "conversations": (conversations, {}),
    "conversations within a length": (conversations, {"max_length": 192, "pad_to_multiple_of": 32}),
    "assistant's loss alone": (conversations, {"assistant_only_loss": True}),
    "texts": (texts, {}),
    "texts of 16 tokens": (texts, {"max_length": 16}),
    "texts padded to a multiple": (texts, {"pad_to_multiple_of": 16}),
    "completions": (completions, {"completion_only_loss": True}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=masks_of_qwen) if "assistant" in case else case for case in CASES]
)
def test_batches_are_those_of_qwen(tiny_processor, case):
    rows, options = CASES[case]
    ours, theirs = (
        sft.DataCollatorForVisionLanguageModeling(processor, **options)(rows())
        for processor in (tiny_processor, qwen_processor(tiny_processor))
    )
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    if options.get("max_length") == 16:
        assert ours["input_ids"].shape == (2, 16)


def test_a_length_that_cuts_an_image_is_refused_as_with_qwen(tiny_processor):
    for processor in (tiny_processor, qwen_processor(tiny_processor)):
        with pytest.raises(ValueError, match="truncation"):
            sft.DataCollatorForVisionLanguageModeling(processor, max_length=16)(conversations())


def test_assistant_only_loss_falls_on_the_assistants_tokens(tiny_processor):
    batch = sft.DataCollatorForVisionLanguageModeling(tiny_processor, assistant_only_loss=True)(conversations())
    learned = [tiny_processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert learned == ["A red cube.<|im_end|>On the table.<|im_end|>", "No.<|im_end|>"]


@masks_of_qwen
def test_a_step_with_the_assistants_loss(tmp_path):
    """TRL's trainer takes the processor as its processing class: tokens, masks, model and saving belong together."""
    from datasets import Dataset

    from syvla.modeling_syvla import SyVLAConfig, SyVLAForConditionalGeneration
    from syvla.processing import SyVLAProcessor, build_tiny_processor

    torch.manual_seed(0)
    model = SyVLAForConditionalGeneration(SyVLAConfig.tiny())
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    arguments = sft.SFTConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, assistant_only_loss=True, max_length=None,
        learning_rate=1e-3, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
    )  # fmt: skip
    trainer = sft.SFTTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(conversations()), processing_class=build_tiny_processor()
    )
    assert np.isfinite(trainer.train().training_loss)
    assert any(not torch.equal(before[name], weights) for name, weights in model.named_parameters())
    trainer.save_model(str(tmp_path))
    assert SyVLAProcessor.from_pretrained(tmp_path).chat_template == trainer.processing_class.chat_template
