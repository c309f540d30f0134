"""Options of `from_pretrained` change where and how weights are kept, not what the model computes."""

import importlib.util

import pytest
import torch
import transformers
from image_encoders import SIGLIP
from packaging import version
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForImageTextToText, BitsAndBytesConfig

from syvla.modeling_syvla import SyVLAValueConfig, SyVLAValueModel


@pytest.fixture
def observation(tiny_processor, unequal_items):
    items = [{key: item[key] for key in ("images", "text", "state", "embodiment")} for item in unequal_items]
    noise = torch.randn(3, 8, 14, generator=torch.Generator().manual_seed(0))
    return {**tiny_processor.collate(items, padding_side="left"), "noise": noise}


@pytest.fixture
def folder(make_model, tmp_path):
    model = make_model(expert_vision_config=SIGLIP)
    model.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    return tmp_path / "model"


ON_DISK = dict.fromkeys(("vlm", "action_queries", "adapter", "expert"), "disk")
OPTIONS = {
    "auto": {"device_map": "auto"},
    "cpu": {"device_map": "cpu"},
    "dict": {"device_map": dict.fromkeys(ON_DISK, "cpu")},
    "part on disk": {"device_map": {**dict.fromkeys(ON_DISK, "cpu"), "expert": "disk"}},
    "queries on disk": {"device_map": {**ON_DISK, "vlm": "cpu"}},
    "auto with too little memory": {"device_map": "auto", "max_memory": {"cpu": "600KB"}},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
}


# transformers 5.4 spreads single Qwen2.5-VL blocks over CPU and disk there and then fails inside its own norm.
SPLITS_BLOCKS = pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.5"),
    reason="this transformers splits blocks on the way to disk",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[SPLITS_BLOCKS] if "memory" in name and "auto" in name else []) for name in OPTIONS],
)
@pytest.mark.parametrize("think", [False, True])
def test_where_weights_are_kept_changes_nothing(folder, observation, tiny_processor, tmp_path, name, think):
    more = {"tokenizer": tiny_processor.tokenizer, "max_new_tokens": 4, "min_new_tokens": 3} if think else {}
    outputs = []
    for options in ({}, {**OPTIONS[name], "offload_folder": tmp_path / "offload"}):
        model = AutoModel.from_pretrained(folder, **options)
        outputs.append(model.predict_actions(**observation, think=think, **more))
    offloads = "disk" in name or "memory" in name
    assert any(p.is_meta for p in model.parameters()) == offloads
    torch.testing.assert_close(outputs[1].actions, outputs[0].actions, atol=1e-6, rtol=0)
    assert outputs[1].thoughts == outputs[0].thoughts


@torch.no_grad()
def test_the_value_model_runs_from_disk(tiny_processor, unequal_items, tmp_path):
    robots = {name: {k: e[k] for k in ("state_dim", "action_dim")} for name, e in tiny_processor.embodiments.items()}
    model = SyVLAValueModel(SyVLAValueConfig.tiny(embodiments=robots)).eval()
    model.save_pretrained(tmp_path / "model")
    parts = {name: "disk" for name, _ in model.named_children()} | {"norm": "cpu"}
    loaded = AutoModel.from_pretrained(tmp_path / "model", device_map=parts, offload_folder=tmp_path / "offload")
    batch = tiny_processor.collate(unequal_items)
    torch.testing.assert_close(loaded(**batch).value, model(**batch).value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("vision", [SIGLIP, None], ids=["siglip", "convolutional"])
@pytest.mark.parametrize(
    ("implementation", "expected"),
    [("eager", "eager"), ("sdpa", "sdpa"), ({"": "sdpa", "vlm_config": "eager"}, "eager")],
    ids=["eager", "sdpa", "dict"],
)
def test_attention_implementations_agree(make_model, observation, tmp_path, vision, implementation, expected):
    model = make_model(**({"expert_vision_config": vision} if vision else {}))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation)
    used = {loaded.vlm.config._attn_implementation, loaded.vlm.config.text_config._attn_implementation}
    assert used == {expected}
    torch.testing.assert_close(
        loaded.predict_actions(**observation).actions, model.predict_actions(**observation).actions, atol=1e-4, rtol=0
    )


def test_a_quantizer_that_is_not_installed_is_named(folder):
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ImportError, match="bitsandbytes"):
        AutoModel.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="needs torchao, no part of our extras")
def test_weights_quantized_to_8_bits_by_torchao_act_nearly_the_same(folder, observation):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"])
    plain, quantized = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(folder, quantization_config=config)
    assert type(quantized.expert.layers[0].mlp.up_proj.weight.data) is not torch.Tensor
    torch.testing.assert_close(
        quantized.predict_actions(**observation).actions, plain.predict_actions(**observation).actions, atol=0.1, rtol=0
    )


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes, no part of our extras")
@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_vlm_quantized_by_bitsandbytes_acts_nearly_the_same(folder, observation, bits):
    """The VLM alone: its kernels for CPUs take neither the expert's image features nor a robot's few dimensions."""
    kept = ["expert", "adapter", "action_queries", "lm_head", "vlm.model.visual"]
    config = BitsAndBytesConfig(**{bits: True}, llm_int8_skip_modules=kept, bnb_4bit_compute_dtype=torch.float32)
    plain = AutoModel.from_pretrained(folder)
    quantized = AutoModel.from_pretrained(folder, quantization_config=config, device_map="cpu")
    assert type(quantized.vlm.model.language_model.layers[0].mlp.up_proj) is not torch.nn.Linear
    torch.testing.assert_close(
        quantized.predict_actions(**observation).actions, plain.predict_actions(**observation).actions, atol=0.2, rtol=0
    )


def test_gradient_checkpointing_reaches_vlm_expert_and_image_encoder(folder, tiny_processor, unequal_items):
    model = AutoModel.from_pretrained(folder).train()
    model.gradient_checkpointing_enable()
    kinds = {type(m).__name__ for m in model.modules() if getattr(m, "gradient_checkpointing", False)}
    assert {"ExpertLayer", "Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock", "SiglipEncoderLayer"} <= kinds
    model(**tiny_processor.collate(unequal_items)).loss.backward()
    assert model.vlm.model.language_model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


# ---------------------------------------------------------------- damaged files

DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "garbled": lambda path: path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:]),
    "a pointer of git-lfs": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("load", [AutoModel, AutoModelForImageTextToText])
def test_a_corrupt_shard_is_named(folder, damage, load):
    shards = sorted(folder.glob("model-*.safetensors"))
    DAMAGE[damage](shards[1])
    told = "a Git LFS pointer.*git lfs pull" if "lfs" in damage else ".*damaged or incomplete.*[Dd]ownload"
    with pytest.raises(ValueError, match=f"{shards[1].name}: {told}"):
        load.from_pretrained(folder)


def test_a_missing_shard_is_named(folder):
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        AutoModel.from_pretrained(folder)


def test_weights_that_another_file_replaced_are_named(folder):
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    save_file({"other": torch.zeros(1)}, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing from the checkpoint: .*; 1 weights .* unknown to the model: other"):
        AutoModel.from_pretrained(folder)
