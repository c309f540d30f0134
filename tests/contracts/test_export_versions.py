"""An exported VLM under the installed transformers and under 4.57, the oldest that it is written for.

pip install --no-deps --target FOLDER 'transformers==4.57.*' 'huggingface_hub>=0.34,<1' 'tokenizers>=0.22,<=0.23'
TRANSFORMERS_4_57=FOLDER pytest tests/contracts/test_export_versions.py
"""

import json
import os
import subprocess
import sys

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


@pytest.mark.parametrize("version", ["installed", "4.57"])
def test_an_exported_vlm_is_read_with_the_same_logits_tokens_and_prompt(version, tmp_path):
    environment = dict(os.environ)
    if version != "installed":
        folder = environment.get("TRANSFORMERS_4_57")
        if not folder:
            pytest.skip("TRANSFORMERS_4_57 names no folder with transformers 4.57; see this file's first lines")
        environment["PYTHONPATH"] = folder
    model, processor = POLICY.model(), build_tiny_processor()
    model.save_pretrained(tmp_path / "syvla")
    processor.save_pretrained(tmp_path / "syvla")
    export_vlm(tmp_path / "syvla", tmp_path / "vlm")
    ids = text_batch()["input_ids"][:, 6:]
    with torch.no_grad():
        logits = model.vlm(input_ids=ids).logits
    torch.save({"input_ids": ids, "logits": logits}, tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "vlm"), str(tmp_path / "expected.pt")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert version == "installed" or got["version"].startswith("4.57")
    assert got["class"] == "Qwen2_5_VLForConditionalGeneration"
    assert got["problems"] == 0
    assert got["difference"] < 1e-5
    assert got["tied"]
    assert got["tokens"] == processor.tokenizer("Where is the red cube?").input_ids
    messages = [{"role": "user", "content": "Where is the red cube?"}]
    assert got["prompt"] == processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert got["ends"] == [482, 480]
    assert got["generation"] == [482, 480]
