"""A checkpoint carries its code: it loads with trust_remote_code where none of our packages can be imported."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from syvla import modeling_syvla, processing
from syvla.modeling_syvla import SyVLAValueConfig, SyVLAValueModel

LOAD_AND_RUN = """
import sys
from importlib.abc import MetaPathFinder

OURS = ("syvla",)


class Nothing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ImportError(f"{name} is not installed here")


sys.meta_path.insert(0, Nothing())
try:
    import syvla
    sys.exit("the package can be imported; this test would prove nothing")
except ImportError:
    pass

import json
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
folder, again = sys.argv[1:]
load = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **load)
model = AutoModel.from_pretrained(folder, **load)
text_model = AutoModelForImageTextToText.from_pretrained(folder, **load)
processor = AutoProcessor.from_pretrained(folder, **load)
for thing in (config, model, text_model, processor):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing).__module__

image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
inputs = processor(images={"center": image}, text="lift", state=np.zeros(3), embodiment="arm")
noise = torch.ones(1, 8, 14)
output = model.predict_actions(**inputs, noise=noise, think=True, max_new_tokens=4, min_new_tokens=4)
actions = processor.decode_actions(output.actions, "arm")
messages = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
chat = processor.apply_chat_template(messages, **options)
answer = text_model.generate(**chat, max_new_tokens=4, min_new_tokens=4)
model.save_pretrained(again)
processor.save_pretrained(again)
AutoModel.from_pretrained(again, **load)
names = [type(x).__name__ for x in (config, model, text_model, processor)]
print(json.dumps({"classes": names, "actions": actions.tolist(), "thoughts": output.thoughts, "answer": answer.tolist()}))
"""


@pytest.mark.slow
def test_checkpoint_loads_and_runs_without_the_packages(tiny_model, tiny_processor, tmp_path):
    folder = tmp_path / "syvla-3b.v1"  # names with dots and dashes become module names
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    script = tmp_path / "elsewhere" / "run.py"
    script.parent.mkdir()
    script.write_text(LOAD_AND_RUN)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    result = subprocess.run(
        [sys.executable, "-I", str(script), str(folder), str(tmp_path / "again")],
        cwd=script.parent,
        env={**kept, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    *others, last = result.stdout.splitlines()  # an installed DeepSpeed says there which accelerator it took
    assert not any("trust" in line for line in others), "no question whether to trust the code"
    got = json.loads(last)
    assert got["classes"] == ["SyVLAConfig", "SyVLAModel", "SyVLAForConditionalGeneration", "SyVLAProcessor"]

    import numpy as np

    image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    inputs = tiny_processor(images={"center": image}, text="lift", state=np.zeros(3), embodiment="arm")
    output = tiny_model.predict_actions(
        **inputs,
        noise=torch.ones(1, 8, 14),
        think=True,
        max_new_tokens=4,
        min_new_tokens=4,
        tokenizer=tiny_processor.tokenizer,
    )
    np.testing.assert_allclose(tiny_processor.decode_actions(output.actions, "arm"), got["actions"], atol=1e-5)
    assert output.thoughts == got["thoughts"]


LOAD_VALUE = """
import sys

import torch
from transformers import AutoModel

try:
    import syvla
    sys.exit("the package can be imported; this test would prove nothing")
except ImportError:
    pass
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
state, ids = torch.zeros(1, 14), torch.zeros(1, dtype=torch.long)
print(model(expert_pixel_values=torch.ones(1, 3, 3, 32, 32), state=state, embodiment_ids=ids).value.item())
"""


@pytest.mark.slow
def test_a_value_model_loads_without_the_packages(tmp_path):
    model = SyVLAValueModel(SyVLAValueConfig.tiny()).eval()
    model.save_pretrained(tmp_path / "value.v1")
    hidden = LOAD_AND_RUN.split("try:")[0]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    result = subprocess.run(
        [sys.executable, "-I", "-c", hidden + LOAD_VALUE, str(tmp_path / "value.v1")],
        cwd=tmp_path,
        env={**kept, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    pixels = torch.ones(1, 3, 3, 32, 32)
    ids = torch.zeros(1, dtype=torch.long)
    value = model(expert_pixel_values=pixels, state=torch.zeros(1, 14), embodiment_ids=ids).value.item()
    assert float(result.stdout) == pytest.approx(value, abs=1e-5)


def test_checkpoint_holds_the_code_of_both_packages_flat(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} >= {
        "configuration_syvla.py",
        "modeling_syvla.py",
        "action_expert.py",
        "flow_matching.py",
        "intention_decoupling.py",
        "processing_syvla.py",
        "prompt_format.py",
        "normalization.py",
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_syvla.SyVLAConfig",
        "AutoModel": "modeling_syvla.SyVLAModel",
        "AutoModelForImageTextToText": "modeling_syvla.SyVLAForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_syvla.SyVLAForConditionalGeneration",
    }
    processor = json.loads((tmp_path / "processor_config.json").read_text())
    assert processor["auto_map"]["AutoProcessor"] == "processing_syvla.SyVLAProcessor"


@pytest.mark.parametrize(
    ("package", "entry"),
    [(modeling_syvla, "modeling_syvla"), (modeling_syvla, "modeling_value"), (processing, "processing_syvla")],
)
def test_an_entry_file_imports_every_file_that_it_needs_itself(package, entry):
    """As transformers 5.4 loads a checkpoint: without the imports of the imported files."""
    folder = Path(package.__file__).parent

    def imported(name: str) -> set[str]:
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        return {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1}

    needed, pending = set(), [entry]
    while pending:
        for name in imported(pending.pop()) - needed:
            needed.add(name)
            pending.append(name)
    assert imported(entry) == needed - {entry}


def test_the_code_travels_again_when_a_loaded_checkpoint_is_saved(tiny_model, tiny_processor, tmp_path):
    from transformers import AutoModel, AutoProcessor

    for folder, source in (("a", None), ("b", "a"), ("c", "b")):
        model = tiny_model if source is None else AutoModel.from_pretrained(tmp_path / source)
        processor = tiny_processor if source is None else AutoProcessor.from_pretrained(tmp_path / source)
        model.save_pretrained(tmp_path / folder)
        processor.save_pretrained(tmp_path / folder)
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        first, last = (json.loads((tmp_path / f / name).read_text()).get("auto_map") for f in "ac")
        assert first == last, name
    names = [{path.name for path in (tmp_path / f).rglob("*.py")} for f in "ac"]
    assert names[0] == names[1]
