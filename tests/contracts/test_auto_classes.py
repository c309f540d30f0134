"""Pipelines and Auto classes on folders as users save them."""

from pathlib import Path

import pytest
import torch
from contract_subjects import POLICY, TEXT
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, pipeline

from syvla.modeling_syvla import SyVLAForConditionalGeneration, SyVLAModel
from syvla.processing import build_tiny_processor

LAYERS = r".*language_model\.layers\.\d+\.self_attn\.(q|v)_proj"


@pytest.fixture
def checkpoint(tmp_path):
    POLICY.model().save_pretrained(tmp_path / "checkpoint")
    build_tiny_processor().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_a_pipeline_answers_as_generate_does(task, checkpoint):
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    question = [{"type": "image", "image": image}, {"type": "text", "text": "Where is it?"}]
    messages = [{"role": "user", "content": question}]
    try:
        answering = pipeline(task, model=str(checkpoint))
    except ImportError as error:
        if "Torchvision" not in str(error):
            raise
        pytest.skip("transformers' any-to-any pipeline asks for torchvision, which is not installed")
    assert type(answering.model) is SyVLAForConditionalGeneration
    free = {"max_new_tokens": 5, "do_sample": False}
    (got,) = answering(text=messages, return_full_text=False, generate_kwargs=free)
    processor = answering.processor
    plain = [{"role": "user", "content": [{"type": "image"}, question[1]]}]
    text = processor.apply_chat_template(plain, add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    ids = answering.model.generate(**inputs, **free)[:, inputs["input_ids"].shape[1] :]
    assert got["generated_text"].strip() == processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("load", [AutoModel.from_pretrained, SyVLAModel.from_pretrained], ids=["AutoModel", "class"])
def test_the_folder_of_an_adapter_says_what_it_is(load, checkpoint, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft: pip install 'syvla[peft]'")
    from syvla.training.run.adapters import add_adapter, save_config

    adapted = add_adapter(SyVLAModel.from_pretrained(checkpoint), rank=2)
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    save_config(adapted, Path(folder))
    with pytest.raises(
        ValueError, match=r"adapter: this is the folder of a SyVLA adapter.*load_adapter.*syvla-adapters merge"
    ):
        load(folder)


@torch.no_grad()
def test_a_plain_adapter_of_the_text_model_loads_with_its_base(checkpoint, tmp_path):
    """As TRL saves one."""
    peft = pytest.importorskip("peft", reason="adapters need peft: pip install 'syvla[peft]'")
    base = AutoModelForImageTextToText.from_pretrained(checkpoint)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=LAYERS))
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.fill_(0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    batch = {k: v for k, v in TEXT.batch().items() if k != "labels"}
    wanted = adapted(**batch).logits
    whole = peft.PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(checkpoint), tmp_path / "adapter"
    )
    torch.testing.assert_close(whole(**batch).logits, wanted, rtol=0, atol=1e-5)
