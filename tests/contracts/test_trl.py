"""One real step of TRL's trainers on the text model."""

import pytest
import torch
from contract_subjects import TEXT
from datasets import Dataset
from transformers import AutoProcessor, AutoTokenizer

from syvla.modeling_syvla import SyVLAForConditionalGeneration
from syvla.processing import build_tiny_processor

trl = pytest.importorskip("trl", reason="needs TRL: scripts/install_test_peers.sh")
peft = pytest.importorskip("peft", reason="adapters need peft: pip install 'syvla[peft]'")

QUESTIONS = ("Where is the red cube?", "What stands left of the green bar?")
ANSWERS = ("On the left of the table.", "A blue cup.")
COMMON = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}


def asked(question):
    return [{"role": "user", "content": question}]


def answered(answer):
    return [{"role": "assistant", "content": answer}]


@pytest.fixture
def processor(tmp_path):
    """As users get it; its tokenizer then has the chat template."""
    build_tiny_processor().save_pretrained(tmp_path / "processor")
    return AutoProcessor.from_pretrained(tmp_path / "processor")


@pytest.fixture
def tokenizer(processor, tmp_path):
    return AutoTokenizer.from_pretrained(tmp_path / "processor")


@pytest.fixture
def lora():
    return peft.LoraConfig(r=4, target_modules=r".*language_model\.layers\.\d+\.self_attn\.(q|v)_proj")


def moved(trainer):
    """Names of the weights that a step changes."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry or "train_loss" in entry]
    assert losses
    assert all(torch.isfinite(torch.tensor(entry.get("loss", entry.get("train_loss")))) for entry in losses)
    return {name for name, p in trainer.model.named_parameters() if name in before and not torch.equal(p, before[name])}


def require_saved(trainer, folder, adapted):
    """What the trainer saves is what it trained, read back by class, or as an adapter of the same base."""
    trainer.save_model(folder)
    if adapted:
        loaded = peft.PeftModel.from_pretrained(TEXT.model(), folder)
    else:
        loaded = type(TEXT.model()).from_pretrained(folder)
    trained, read = trainer.model.state_dict(), loaded.state_dict()
    compared = [name for name in trained if "lora_" in name or not adapted]
    assert compared
    assert all(
        torch.equal(trained[name], read[name.replace(".ref.", ".default.")]) for name in compared if name in read
    )
    assert {name for name in compared if ".ref." not in name} <= read.keys()


def conversations():
    pairs = zip(QUESTIONS, ANSWERS, strict=True)
    return Dataset.from_list([{"messages": asked(q) + answered(a)} for q, a in pairs])


@pytest.mark.parametrize("adapted", [False, True], ids=["all_weights", "lora"])
def test_supervised_fine_tuning_on_text(adapted, tokenizer, lora, tmp_path):
    trainer = trl.SFTTrainer(
        TEXT.model(),
        args=trl.SFTConfig(str(tmp_path), **COMMON, max_length=64),
        train_dataset=conversations(),
        processing_class=tokenizer,
        peft_config=lora if adapted else None,
    )
    changed = moved(trainer)
    assert any("self_attn.q_proj" in name for name in changed)
    assert all("lora_" in name for name in changed) == adapted
    require_saved(trainer, tmp_path / "saved", adapted)


@pytest.mark.parametrize("adapted", [False, True], ids=["all_weights", "lora"])
def test_supervised_fine_tuning_on_the_assistants_tokens_alone(adapted, processor, lora, tmp_path):
    """Words of the user that the tokenizer does not share with the answers get no gradient from the loss."""
    trainer = trl.SFTTrainer(
        TEXT.model(),
        args=trl.SFTConfig(str(tmp_path), **COMMON, max_length=None, assistant_only_loss=True),
        train_dataset=conversations(),
        processing_class=processor,
        peft_config=lora if adapted else None,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    learned = batch["labels"][batch["labels"] != -100]
    assert sorted(processor.tokenizer.decode(learned).split("<|im_end|>")) == sorted(["", *ANSWERS])
    changed = moved(trainer)
    assert changed
    assert all("lora_" in name for name in changed) == adapted
    require_saved(trainer, tmp_path / "saved", adapted)


def test_supervised_fine_tuning_on_images(processor, tmp_path):
    from PIL import Image

    rows = []
    for shade, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        content = [{"type": "image"}, {"type": "text", "text": q}]
        rows.append(
            {
                "images": [Image.new("RGB", (32, 32), (90 * shade, 20, 200))],
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": [{"type": "text", "text": a}]},
                ],
            }
        )
    trainer = trl.SFTTrainer(
        TEXT.model(),
        args=trl.SFTConfig(str(tmp_path), **COMMON, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )
    changed = moved(trainer)
    assert any(".visual." in name for name in changed)
    assert any("language_model" in name for name in changed)


@pytest.mark.parametrize("adapted", [False, True], ids=["all_weights", "lora"])
def test_direct_preference_optimization(adapted, tokenizer, lora, tmp_path):
    pairs = zip(QUESTIONS, ANSWERS, reversed(ANSWERS), strict=True)
    rows = [{"prompt": asked(q), "chosen": answered(a), "rejected": answered(r)} for q, a, r in pairs]
    TEXT.model().save_pretrained(tmp_path / "base")  # where TRL reads the reference model from
    trainer = trl.DPOTrainer(
        SyVLAForConditionalGeneration.from_pretrained(tmp_path / "base"),
        args=trl.DPOConfig(str(tmp_path), **COMMON),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora if adapted else None,
    )
    changed = moved(trainer)
    assert changed
    assert all("lora_" in name for name in changed) == adapted
    require_saved(trainer, tmp_path / "saved", adapted)
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: policy and reference are still equal


@pytest.mark.parametrize("adapted", [False, True], ids=["all_weights", "lora"])
def test_group_relative_policy_optimization(adapted, tokenizer, lora, tmp_path):
    def by_letters(completions, **kwargs):
        return [float(sum(map(ord, completion[0]["content"])) % 97) for completion in completions]

    trainer = trl.GRPOTrainer(
        TEXT.model(),
        reward_funcs=by_letters,
        args=trl.GRPOConfig(str(tmp_path), **COMMON, num_generations=2, max_completion_length=6, beta=0.0),
        train_dataset=Dataset.from_list([{"prompt": asked(q)} for q in QUESTIONS]),
        processing_class=tokenizer,
        peft_config=lora if adapted else None,
    )
    changed = moved(trainer)
    assert any("language_model" in name for name in changed)
    assert all("lora_" in name for name in changed) == adapted
    require_saved(trainer, tmp_path / "saved", adapted)
