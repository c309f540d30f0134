"""An exported VLM under the installed transformers and under 4.57, the oldest that it is written for.

pip install --no-deps --target FOLDER 'transformers==4.57.*' 'huggingface_hub>=0.34,<1' 'tokenizers>=0.22,<=0.23' torchvision
TRANSFORMERS_4_57=FOLDER pytest tests/contracts/test_export_versions.py

vLLM and SGLang read the folder through the Auto classes of their transformers. What their loaders ask of the configuration
and of the processor is asked here by name; `docs/contracts.md` says where they ask it.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from contract_subjects import POLICY, text_batch

from syvla.modeling_syvla.export_vlm import export_vlm
from syvla.processing import build_tiny_processor

READ = """
import json, sys, torch, transformers
from transformers import AutoModelForImageTextToText, AutoTokenizer
torch.set_num_threads(1)
folder, expected = sys.argv[1], torch.load(sys.argv[2])
model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
info = info if isinstance(info, dict) else vars(info)
model.eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model(input_ids=expected["input_ids"]).logits
messages = [{"role": "user", "content": "Where is the red cube?"}]
print(json.dumps({
    "version": transformers.__version__,
    "class": type(model).__name__,
    "problems": sum(len(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")),
    "difference": float((logits - expected["logits"]).abs().max()),
    "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    "tokens": tokenizer("Where is the red cube?").input_ids,
    "prompt": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
    "ends": [tokenizer.eos_token_id, tokenizer.pad_token_id],
    "generation": [model.generation_config.eos_token_id, model.generation_config.pad_token_id],
}))
"""


ASK = """
import json, sys, numpy, transformers
from PIL import Image
from transformers import AutoConfig, AutoProcessor, GenerationConfig
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder)
text, vision = config.get_text_config(), config.vision_config
rope = getattr(text, "rope_parameters", None) or text.rope_scaling
found = {
    "version": transformers.__version__,
    # From the file: transformers 5.4 loses it on the way into the configuration, of every Qwen2.5-VL.
    "architectures": json.load(open(folder + "/config.json"))["architectures"],
    "model_type": config.model_type,
    "dtype": [str(part.dtype).removeprefix("torch.") for part in (config, text)],
    "tied": [config.tie_word_embeddings, text.tie_word_embeddings],
    "tokens": [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id],
    "mrope_section": rope["mrope_section"],
    "rope_theta": rope.get("rope_theta") or text.rope_theta,
    "text": {name: getattr(text, name) for name in json.loads(sys.argv[2])},
    "vision": {name: getattr(vision, name) for name in json.loads(sys.argv[3])},
    "ends": GenerationConfig.from_pretrained(folder).eos_token_id,
}
try:
    import torchvision
except ImportError:
    torchvision = None
if torchvision is not None:
    options = {"use_fast": True} if transformers.__version__.startswith("4.") else {}
    processor = AutoProcessor.from_pretrained(folder, **options)
    images = processor.image_processor
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=numpy.uint8))
    question = [{"type": "image"}, {"type": "text", "text": "Where is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    batch = processor(images=[picture], text=[prompt], return_tensors="pt")
    found["processor"] = {
        "class": type(processor).__name__,
        "video": type(processor.video_processor).__name__,
        "pixels": [images.size["shortest_edge"], images.size["longest_edge"]],
        "attributes": [getattr(images, "min_pixels", None), getattr(images, "max_pixels", None)],
        "patches": [images.patch_size, images.merge_size, images.temporal_patch_size],
        "markers": [processor.image_token, processor.video_token],
        "prompt": prompt,
        "input_ids": batch["input_ids"].tolist(),
        "grid": batch["image_grid_thw"].tolist(),
        "pixel_values": batch["pixel_values"].tolist(),
    }
print(json.dumps(found))
"""

# What vLLM and SGLang read to build the language model and the image encoder.
TEXT_FIELDS = [
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "rms_norm_eps", "hidden_act", "max_position_embeddings", "use_sliding_window"),
]
VISION_FIELDS = [
    *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "in_channels", "patch_size"),
    *("temporal_patch_size", "spatial_merge_size", "window_size", "fullatt_block_indexes", "hidden_act"),
    "tokens_per_second",
]
VERSIONS = pytest.mark.parametrize("version", ["installed", "4.57"])


def run(version, code, *arguments, cwd):
    """What code prints last, as JSON, run with the installed transformers or with 4.57."""
    environment = dict(os.environ)
    if version != "installed":
        folder = environment.get("TRANSFORMERS_4_57")
        if not folder:
            pytest.skip("TRANSFORMERS_4_57 names no folder with transformers 4.57; see this file's first lines")
        environment["PYTHONPATH"] = folder
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert version == "installed" or got["version"].startswith("4.57")
    return got


@pytest.fixture
def processor():
    return build_tiny_processor()


@pytest.fixture
def exported(processor, tmp_path):
    POLICY.model().save_pretrained(tmp_path / "syvla")
    processor.save_pretrained(tmp_path / "syvla")
    export_vlm(tmp_path / "syvla", tmp_path / "vlm")
    return tmp_path / "vlm"


@VERSIONS
def test_an_exported_vlm_is_read_with_the_same_logits_tokens_and_prompt(version, exported, processor, tmp_path):
    ids = text_batch()["input_ids"][:, 6:]
    with torch.no_grad():
        logits = POLICY.model().vlm(input_ids=ids).logits
    torch.save({"input_ids": ids, "logits": logits}, tmp_path / "expected.pt")
    got = run(version, READ, exported, tmp_path / "expected.pt", cwd=tmp_path)
    assert got["class"] == "Qwen2_5_VLForConditionalGeneration"
    assert got["problems"] == 0
    assert got["difference"] < 1e-5
    assert got["tied"]
    assert got["tokens"] == processor.tokenizer("Where is the red cube?").input_ids
    messages = [{"role": "user", "content": "Where is the red cube?"}]
    assert got["prompt"] == processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert got["ends"] == [482, 480]
    assert got["generation"] == [482, 480]


@VERSIONS
def test_what_inference_engines_ask_of_an_export_is_answered(version, exported, processor, tmp_path):
    export_vlm(tmp_path / "syvla", tmp_path / "half", dtype="bfloat16")
    got = run(version, ASK, tmp_path / "half", json.dumps(TEXT_FIELDS), json.dumps(VISION_FIELDS), cwd=tmp_path)
    vlm = POLICY.model().config.vlm_config
    assert got["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert (got["model_type"], got["dtype"], got["tied"]) == ("qwen2_5_vl", ["bfloat16", "bfloat16"], [True, True])
    assert got["tokens"] == [486, 487, 483, 484]
    assert (got["mrope_section"], got["rope_theta"]) == ([2, 3, 3], 10000.0)
    assert got["text"] == {name: getattr(vlm.text_config, name) for name in TEXT_FIELDS}
    assert got["vision"] == {name: getattr(vlm.vision_config, name) for name in VISION_FIELDS}
    assert got["ends"] == 482
    if "processor" not in got:
        return  # Qwen2.5-VL's own processor needs torchvision; the rest has been checked
    asked = got["processor"]
    assert (asked["class"], asked["video"]) == ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor")
    size = processor.image_processor.size
    pixels = [size["shortest_edge"], size["longest_edge"]]
    assert asked["pixels"] == pixels
    assert version == "installed" or asked["attributes"] == pixels  # vLLM reads them with transformers 4
    assert asked["patches"] == [8, 2, 2]
    assert asked["markers"] == ["<|image_pad|>", "<|video_pad|>"]
    picture = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    ours = processor(images=[picture], text=[asked["prompt"]], return_tensors="pt")
    assert asked["input_ids"] == ours["input_ids"].tolist()
    assert asked["grid"] == ours["image_grid_thw"].tolist()
    # torchvision's resizing rounds in another way than Pillow's: most values differ by less than one of 255 levels.
    difference = (torch.tensor(asked["pixel_values"]) - ours["pixel_values"]).abs()
    assert difference.mean() < 4 / 255
