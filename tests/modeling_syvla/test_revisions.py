"""`revision=` means one commit for weights, processor, the tokenizer of thoughts and code alike (Hub cache, offline)."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel

COMMITS = {"v1": "1" * 40, "main": "2" * 40}
REPOSITORY = "someone/policy"

LOAD = """
import json, sys
from importlib.abc import MetaPathFinder


class Nothing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "syvla":
            raise ImportError(f"{name} is not installed here")


installed = sys.argv[1] == "installed"
if installed:
    import syvla
else:
    sys.meta_path.insert(0, Nothing())

import numpy as np
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
result = {}
for revision in ("v1", "main", None, "1" * 40):
    options = {} if revision is None else {"revision": revision}
    if not installed:
        options["trust_remote_code"] = True
    model = AutoModel.from_pretrained("someone/policy", **options)
    text_model = AutoModelForImageTextToText.from_pretrained("someone/policy", **options)
    processor = AutoProcessor.from_pretrained("someone/policy", **options)
    image = np.zeros((32, 32, 3), np.uint8)
    inputs = processor(images={"center": image}, text="lift", state=np.zeros(14))
    assert len(model.predict_actions(**inputs, think=True, max_new_tokens=3).thoughts) == 1  # loads the tokenizer
    result[str(revision)] = {
        "weights": model.adapter[0].bias[0].item(),
        "text weights": text_model.vlm.model.language_model.norm.weight[0].item(),
        "statistics": processor.embodiments["tabletop"]["statistics"]["state"]["mean"][0],
        "thought tokenizer": model.tokenizer.model_max_length,
        "processor's tokenizer": processor.tokenizer.model_max_length,
        "code": [getattr(sys.modules[type(x).__module__], "REVISION", None) for x in (model, text_model, processor)],
    }
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A Hub cache with one repository of two commits that differ in everything."""
    from syvla.processing import build_tiny_processor

    root = tmp_path_factory.mktemp("hub")
    repository = root / f"models--{REPOSITORY.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for number, (revision, commit) in enumerate(COMMITS.items(), start=1):
        folder = repository / "snapshots" / commit
        model = SyVLAModel(SyVLAConfig.tiny())
        model.adapter[0].bias.data.fill_(number)
        model.vlm.model.language_model.norm.weight.data.fill_(number)
        model.save_pretrained(folder)
        processor = build_tiny_processor(SyVLAConfig.tiny())
        statistics = {"mean": [float(number)] * 14, "std": [1.0] * 14}
        processor.set_embodiment("tabletop", {"state": statistics, "action": statistics})
        processor.tokenizer.model_max_length = 1000 + number
        processor.save_pretrained(folder)
        for file in ("modeling_syvla.py", "processing_syvla.py"):
            with (folder / file).open("a") as stream:
                stream.write(f"\nREVISION = {number}\n")
        (repository / "refs" / revision).write_text(commit)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("code", ["installed", "remote"])
def test_a_revision_is_one_commit_for_everything(cache, tmp_path, code):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, str(script), code], env={**kept, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    got = json.loads(result.stdout[result.stdout.index("{") :])  # an installed DeepSpeed speaks first
    for revision, number in (("v1", 1), ("main", 2), ("None", 2), ("1" * 40, 1)):
        assert got[revision] == {
            "weights": number,
            "text weights": number,
            "statistics": number,
            "thought tokenizer": 1000 + number,
            "processor's tokenizer": 1000 + number,
            "code": [number if code == "remote" else None] * 3,
        }, revision


def test_the_tokenizer_of_thoughts_stays_with_the_weights_when_the_branch_moves_on(cache, tmp_path):
    moved = shutil.copytree(cache, tmp_path / "hub")
    model = SyVLAModel.from_pretrained(REPOSITORY, revision="main", cache_dir=moved, local_files_only=True)
    refs = moved / f"models--{REPOSITORY.replace('/', '--')}" / "refs"
    (refs / "main").write_text(COMMITS["v1"])
    assert model._own_tokenizer().model_max_length == 1002


def test_a_revision_that_does_not_exist_is_an_error(cache):
    with pytest.raises(OSError, match=r"couldn't find them in the cached files|v9"):
        SyVLAModel.from_pretrained(REPOSITORY, revision="v9", cache_dir=cache, local_files_only=True)


def test_a_damaged_file_of_the_cache_is_named(cache, tmp_path):
    copy = shutil.copytree(cache, tmp_path / "hub")
    (weights,) = copy.glob(f"*/snapshots/{COMMITS['v1']}/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{COMMITS['v1']}/model.safetensors: this weight file is damaged"):
        SyVLAModel.from_pretrained(REPOSITORY, revision="v1", cache_dir=copy, local_files_only=True)
