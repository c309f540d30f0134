"""PEFT: an adapted model equals its merged one, and every way of adapting finds what it adapts."""

import pytest
import torch
import transformers
from contract_subjects import POLICY, TEXT, VALUE, text_batch
from packaging.version import Version

peft = pytest.importorskip("peft", reason="adapters need peft: pip install 'syvla[peft]'")
with_text = pytest.mark.applies(lambda subject: subject.can_generate)
LAYERS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


def disturb(adapted, seed=3):
    """Weights that an adapter trains, away from the identity that it starts as."""
    generator = torch.Generator().manual_seed(seed)
    for p in adapted.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape, generator=generator) * 0.2)


def text_signal(model):
    """Logits of whatever holds the language model, adapted or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, "vlm", base)(**text_batch()).logits


KINDS = {
    "lora": {"target_modules": LAYERS},
    "dora": {"target_modules": LAYERS, "use_dora": True},
    "lora_and_trainable_tokens": {"target_modules": LAYERS, "trainable_token_indices": [3, 77, 300]},
    "tied_trainable_tokens": {
        "target_modules": LAYERS,
        "trainable_token_indices": [3, 77, 300],
        "ensure_weight_tying": True,
    },
    "embeddings_trained_whole": {
        "target_modules": LAYERS,
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}


@with_text
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_adapted_equals_merged(subject, kind):
    model = subject.model()
    before = text_signal(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, **KINDS[kind])).eval()
    torch.testing.assert_close(text_signal(adapted), before, rtol=1e-4, atol=1e-5)  # starts as the identity
    disturb(adapted)
    wanted = text_signal(adapted)
    assert (wanted - before).abs().max() > 1e-2
    merged = adapted.merge_and_unload()
    assert merged.get_output_embeddings().weight.data_ptr() == merged.get_input_embeddings().weight.data_ptr()
    torch.testing.assert_close(text_signal(merged), wanted, rtol=1e-3, atol=1e-3)


@with_text
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_adapter_comes_back(subject, kind, tmp_path):
    adapted = peft.get_peft_model(subject.model(), peft.LoraConfig(r=4, **KINDS[kind])).eval()
    disturb(adapted)
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(subject.model(), tmp_path).eval()
    torch.testing.assert_close(text_signal(loaded), text_signal(adapted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "FEATURE_EXTRACTION"])
def test_a_task_type_trains_through_its_own_forward(subject, task_type):
    targets = LAYERS if subject.has_text else r"layers\.\d+\.self_attn\.(q|k|v|o)_proj"
    if task_type == "CAUSAL_LM" and not subject.can_generate:
        pytest.skip("a model without text generation is no causal language model")
    adapted = peft.get_peft_model(subject.model(), peft.LoraConfig(r=4, task_type=task_type, target_modules=targets))
    batch = subject.batch()
    plain = subject.model()(**batch)
    output = adapted(**batch)
    torch.testing.assert_close(output.loss, plain.loss, rtol=1e-4, atol=1e-5)
    output.loss.backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert trained
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


@pytest.mark.applies(lambda subject: subject.can_generate and subject.name != "SyVLAModel")
@pytest.mark.parametrize("kind", ["prompt", "prefix", "p_tuning"])
def test_prompt_learning_finds_the_text_configuration_and_trains(subject, kind):
    cls = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig, "p_tuning": peft.PromptEncoderConfig}
    adapted = peft.get_peft_model(subject.model(), cls[kind](task_type="CAUSAL_LM", num_virtual_tokens=4))
    config = adapted.active_peft_config
    assert (config.token_dim, config.num_layers) == ((64, 2) if kind != "prefix" else (32, 2))
    batch = {k: v for k, v in text_batch().items() if k in ("input_ids", "attention_mask", "labels")}
    batch = {k: v[:, 6:] for k, v in batch.items()}  # text alone: prompt learning embeds the tokens itself
    output = adapted(**batch)
    output.loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


@pytest.mark.applies(lambda subject: subject.can_generate and subject.name != "SyVLAModel")
@torch.no_grad()
def test_a_learned_prompt_stands_before_generated_text_as_well(subject):
    """With a prompt that holds the embeddings of tokens, text continues as after those tokens."""
    model, words = subject.model(), torch.tensor([[5, 17, 44, 101]])
    ids = text_batch()["input_ids"][:1, 6:]
    # Without a cache: PEFT 0.21 does not know the name that transformers 5.24 gave it, and would insert the prompt twice.
    free = {"max_new_tokens": 5, "eos_token_id": None, "do_sample": False, "use_cache": False}
    expected = model.generate(torch.cat((words, ids), dim=1), **free)[:, -5:]
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    embeddings = model.get_input_embeddings()(words[0])
    adapted = peft.get_peft_model(model, config).eval()
    adapted.prompt_encoder["default"].embedding.weight.data.copy_(embeddings)
    got = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **free)
    assert torch.equal(got[:, -5:], expected)


def test_the_policy_refuses_a_learned_prompt_by_name():
    adapted = peft.get_peft_model(
        POLICY.model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=64)
    )
    with pytest.raises(ValueError, match="inputs_embeds: SyVLAModel does not take it"):
        adapted(**POLICY.batch())


@pytest.mark.parametrize("reentrant", [False, True], ids=["not_reentrant", "reentrant"])
@pytest.mark.applies(lambda subject: subject.ours or subject.can_generate)
def test_an_adapter_gets_the_same_gradients_under_checkpointing(subject, reentrant):
    """With frozen embeddings, reentrant checkpointing needs inputs that ask for a gradient."""
    if reentrant and subject is POLICY:
        pytest.skip("SyVLAModel refuses reentrant checkpointing by name: Intention Decoupling cannot work with it")
    targets = LAYERS if subject.has_text else r"layers\.\d+\.self_attn\.(q|k|v|o)_proj"
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(subject.model(), peft.LoraConfig(r=4, target_modules=targets)).train()
        disturb(adapted)
        if checkpointed:
            adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            adapted.enable_input_require_grads()
        adapted(**subject.batch()).loss.backward()
        found.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    assert found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@torch.no_grad()
def test_the_value_model_adapted_equals_merged():
    model, batch = VALUE.model(), VALUE.batch()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "gate_proj"])).eval()
    disturb(adapted)
    wanted = adapted(**batch).value
    torch.testing.assert_close(adapted.merge_and_unload()(**batch).value, wanted, rtol=1e-4, atol=1e-5)


def test_transformers_own_adapter_methods_work_on_the_text_model(tmp_path):
    """`model.add_adapter` and `load_adapter`, without a `PeftModel` around it."""
    if Version(transformers.__version__) < Version("5.5"):
        pytest.skip(
            "transformers 5.4 cannot load an adapter onto any Qwen2.5-VL: KeyError 'qwen2_vl' in its own method"
        )
    model = TEXT.model()
    try:
        model.add_adapter(peft.LoraConfig(r=4, target_modules=LAYERS))
    except ValueError as error:
        pytest.skip(f"transformers refuses the installed peft: {error}")
    disturb(model)
    with torch.no_grad():
        wanted = model(**text_batch()).logits
    model.save_pretrained(tmp_path)
    fresh = TEXT.model()
    fresh.load_adapter(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(fresh(**text_batch()).logits, wanted, rtol=0, atol=1e-5)
