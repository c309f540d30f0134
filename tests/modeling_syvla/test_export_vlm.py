"""The VLM comes out of a SyVLA checkpoint as it went in: same files, names and bits, readable without SyVLA."""

import shutil
import subprocess
import sys

import pytest
import torch
from pretrained_parts import (
    disk_tensors,
    image_batch,
    read_json,
    save_vision_tower,
    save_vlm,
    vlm_config,
    write_json,
)
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from syvla.modeling_syvla import SyVLAModel
from syvla.modeling_syvla.assemble import assemble_checkpoint
from syvla.modeling_syvla.export_vlm import export_vlm, main

EXPERT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32, "ff_multiple_of": 32}
OVERRIDES = {"expert_config": EXPERT, "num_query_tokens": 4, "chunk_size": 8}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folder with `vlm`, `siglip`, and `syvla` made of both."""
    root = tmp_path_factory.mktemp("parts")
    save_vlm(root / "vlm", files=True)
    save_vision_tower(root / "siglip")
    assemble_checkpoint(
        root / "vlm", root / "siglip", root / "syvla", config_overrides=OVERRIDES, max_shard_size="300KB"
    )
    return root


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )


def test_round_trip_gives_the_source(parts, tmp_path):
    report = export_vlm(parts / "syvla", tmp_path / "vlm", max_shard_size="60KB")
    assert same(disk_tensors(tmp_path / "vlm"), disk_tensors(parts / "vlm"))
    assert report["family"] == "qwen2_5_vl"
    assert report["tensors"] == len(disk_tensors(parts / "vlm"))
    index = read_json(tmp_path / "vlm" / "model.safetensors.index.json")
    theirs = read_json(parts / "vlm" / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    assert index["weight_map"].keys() == theirs["weight_map"].keys()
    assert read_json(tmp_path / "vlm" / "generation_config.json") == read_json(parts / "vlm" / "generation_config.json")
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm").config.to_dict()
    source = AutoModelForImageTextToText.from_pretrained(parts / "vlm").config.to_dict()
    for config in (exported, source):
        del config["_name_or_path"]
        for rope in ("rope_parameters", "rope_scaling"):
            config["text_config"].get(rope, {}).pop("type", None)  # the published name, which says nothing new
        config["text_config"].pop("tie_word_embeddings", None)  # said twice, for older versions
    assert exported == source
    assert read_json(tmp_path / "vlm" / "config.json")["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert not list((tmp_path / "vlm").glob("*.py"))


def test_the_configuration_has_the_names_of_the_published_checkpoints(parts, tmp_path):
    """What transformers 4.57, vLLM and SGLang read of the language model, from `text_config`."""
    export_vlm(parts / "syvla", tmp_path / "vlm")
    config = read_json(tmp_path / "vlm" / "config.json")
    text = config["text_config"]
    wanted = vlm_config().text_config
    assert text["rope_theta"] == wanted.rope_parameters["rope_theta"]
    assert text["rope_scaling"]["type"] == "mrope"
    assert text["rope_scaling"]["mrope_section"] == wanted.rope_parameters["mrope_section"]
    assert text["tie_word_embeddings"] is True
    assert text["sliding_window"] is None
    assert text["dtype"] == text["torch_dtype"] == config["torch_dtype"] == config["dtype"]
    assert "rope_parameters" not in config["vision_config"]


def test_names_are_those_that_transformers_saves(parts, tmp_path):
    model = SyVLAModel.from_pretrained(parts / "syvla")
    model.vlm.save_pretrained(tmp_path / "theirs")
    theirs = disk_tensors(tmp_path / "theirs")
    if any(key.startswith("model.visual.") for key in theirs):
        pytest.skip("this version of transformers saves half of the tensors under other names than the published ones")
    export_vlm(parts / "syvla", tmp_path / "ours")
    assert same(disk_tensors(tmp_path / "ours"), theirs)


def test_loads_without_syvla_and_computes_the_same(parts, tmp_path):
    """In a process of its own, as transformers and vLLM meet it: nothing missing, nothing left over, equal logits."""
    export_vlm(parts / "syvla", tmp_path / "vlm")
    batch = image_batch()
    with torch.no_grad():
        expected = AutoModelForImageTextToText.from_pretrained(parts / "vlm")(**batch).logits  # as that process does
    torch.save({"batch": batch, "logits": expected}, tmp_path / "expected.pt")
    script = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
torch.set_num_threads(1)
folder, expected = sys.argv[1], torch.load(sys.argv[2])
model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
info = info if isinstance(info, dict) else vars(info)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
assert torch.equal(model(**expected["batch"]).logits, expected["logits"])
assert "modeling_syvla" not in sys.modules and "transformers_modules" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "vlm"), str(tmp_path / "expected.pt")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_trained_weights_are_exported_not_the_sources(parts, tmp_path):
    model = SyVLAModel.from_pretrained(parts / "syvla")
    with torch.no_grad():
        model.vlm.model.language_model.norm.weight.fill_(0.25)
    model.save_pretrained(tmp_path / "trained")
    export_vlm(tmp_path / "trained", tmp_path / "vlm", dtype="float32")
    tensors = disk_tensors(tmp_path / "vlm")
    assert tensors["model.norm.weight"].eq(0.25).all()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert read_json(tmp_path / "vlm" / "config.json")["dtype"] == "float32"


def damaged(parts, tmp_path, change):
    shutil.copytree(parts / "syvla", tmp_path / "syvla")
    tensors = disk_tensors(tmp_path / "syvla")
    change(tensors)
    for path in [*(tmp_path / "syvla").glob("*.safetensors"), *(tmp_path / "syvla").glob("*.index.json")]:
        path.unlink()
    save_file(tensors, tmp_path / "syvla" / "model.safetensors")
    return tmp_path / "syvla"


def test_damaged_checkpoints_are_refused(parts, tmp_path):
    folder = damaged(parts, tmp_path, lambda t: t.pop("vlm.model.visual.merger.mlp.0.bias"))
    with pytest.raises(ValueError, match=r"1 tensors missing: vlm\.\S*visual\.merger\.mlp\.0\.bias"):
        export_vlm(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_syvla_checkpoints_are_exported(parts, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"expected model_type 'syvla' in config\.json, got 'qwen2_5_vl'"):
        export_vlm(parts / "vlm", tmp_path / "out")
    assert main([str(parts / "vlm"), str(tmp_path / "out")]) == 1
    assert "expected model_type 'syvla'" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match="not empty"):
        export_vlm(parts / "syvla", parts / "vlm")


def test_command_line(parts, tmp_path, capsys):
    assert main([str(parts / "syvla"), str(tmp_path / "out"), "--dtype", "float16"]) == 0
    assert '"family": "qwen2_5_vl"' in capsys.readouterr().out
    assert {tensor.dtype for tensor in disk_tensors(tmp_path / "out").values()} == {torch.float16}


def test_family_of_another_layout_keeps_its_names(tmp_path):
    """Qwen3-VL is published with the names that transformers uses today."""
    save_vlm(tmp_path / "vlm", family="qwen3_vl", files=True)
    save_vision_tower(tmp_path / "siglip")
    assemble_checkpoint(tmp_path / "vlm", tmp_path / "siglip", tmp_path / "syvla", config_overrides=OVERRIDES)
    export_vlm(tmp_path / "syvla", tmp_path / "out")
    assert any(key.startswith("model.language_model.") for key in disk_tensors(tmp_path / "out"))
    assert same(disk_tensors(tmp_path / "out"), disk_tensors(tmp_path / "vlm"))
    assert vlm_config("qwen3_vl").model_type == read_json(tmp_path / "out" / "config.json")["model_type"]
    write_json(tmp_path / "syvla" / "config.json", {"model_type": "qwen3_vl"})
    with pytest.raises(ValueError, match="got 'qwen3_vl'"):
        export_vlm(tmp_path / "syvla", tmp_path / "again")
