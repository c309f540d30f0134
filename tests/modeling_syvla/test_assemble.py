"""A checkpoint assembled from pretrained parts holds those parts bit for bit, and gives them back."""

import shutil
from pathlib import Path

import pytest
import torch
from pretrained_parts import (
    QUERY_TOKEN_ID,
    build_vlm,
    disk_tensors,
    image_batch,
    load_vlm,
    published,
    read_json,
    save_tokenizer,
    save_vision_tower,
    save_vlm,
    write_json,
)
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from syvla.modeling_syvla import SyVLAModel
from syvla.modeling_syvla.assemble import QUERY_TOKEN, assemble_checkpoint, from_vlm, query_token_id

EXPERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32, "ff_multiple_of": 32}
OVERRIDES = {"expert_config": EXPERT, "num_query_tokens": 4, "chunk_size": 8}
ARM = {"arm": {"state_dim": 3, "action_dim": 2}}
NEEDS_NO_TOKENIZER = {**OVERRIDES, "query_token_id": QUERY_TOKEN_ID}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folder with `vlm` (bfloat16, sharded, published layout) and `siglip` (float32, two towers)."""
    root = tmp_path_factory.mktemp("parts")
    save_vlm(root / "vlm", files=True)
    save_vision_tower(root / "siglip")
    return root


@pytest.fixture(scope="module")
def assembled(parts):
    assemble_checkpoint(
        parts / "vlm",
        parts / "siglip",
        parts / "syvla",
        embodiments=ARM,
        config_overrides=OVERRIDES,
        max_shard_size="200KB",
    )
    return parts / "syvla"


@pytest.fixture
def broken(parts, tmp_path):
    """Copies of both parts, to damage."""
    for name in ("vlm", "siglip"):
        shutil.copytree(parts / name, tmp_path / name)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    """Apply `change` to the folder's tensors and save them as one file."""
    tensors = disk_tensors(folder)
    change(tensors)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )


def tower(folder):
    """The image encoder's tensors on disk; some versions of transformers nest its module, hence its names."""
    own = below(disk_tensors(folder), "expert.vision_tower.")
    return {key.removeprefix("vision_model."): value for key, value in own.items()}


def below(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


# ---------------------------------------------------------------------- what is in the checkpoint


def test_vlm_tensors_on_disk_are_the_sources(parts, assembled):
    source = disk_tensors(parts / "vlm")
    own = published("qwen2_5_vl", below(disk_tensors(assembled), "vlm."))
    assert len(list((parts / "vlm").glob("model-*"))) > 3, "the source must be sharded to test that"
    assert same(own, source)
    assert "lm_head.weight" not in own, "tied: once on disk"


def test_vision_tower_on_disk_is_the_source_without_text_tower_and_head(parts, assembled):
    source = below(disk_tensors(parts / "siglip"), "vision_model.")
    kept = {key: value for key, value in source.items() if not key.startswith("head.")}
    assert same(tower(assembled), kept)
    assert all(value.dtype == torch.float32 for value in kept.values())


def test_logits_equal_those_of_transformers(parts, assembled):
    reference = load_vlm(parts / "vlm")
    model = SyVLAModel.from_pretrained(assembled)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    batch = image_batch()
    with torch.no_grad():
        expected = reference(**batch).logits
        assert torch.equal(model.vlm(**batch).logits, expected)
        assert torch.equal(model.get_output_embeddings()(model.encode(**batch)), expected)
    assert same(model.vlm.state_dict(), reference.state_dict())


def test_config_generation_config_and_code_are_what_save_pretrained_writes(parts, assembled, tmp_path):
    SyVLAModel.from_pretrained(assembled).save_pretrained(tmp_path)
    for path in [*tmp_path.glob("*.py"), tmp_path / "config.json", tmp_path / "generation_config.json"]:
        assert (assembled / path.name).read_bytes() == path.read_bytes(), path.name
    assert not {path.name for path in assembled.glob("*.py")} ^ {path.name for path in tmp_path.glob("*.py")}
    assert read_json(assembled / "generation_config.json") == read_json(parts / "vlm" / "generation_config.json")
    config = read_json(assembled / "config.json")
    assert config["dtype"] == "bfloat16"
    assert config["query_token_id"] == QUERY_TOKEN_ID
    assert config["expert_vision_config"]["vision_use_head"] is False
    assert config["expert_image_size"] == 32
    assert config["embodiments"] == {"arm": {"id": 0, "state_dim": 3, "action_dim": 2}}


def test_report_counts_every_parameter_and_names_no_path(parts, assembled):
    report = read_json(assembled / "assembly.json")
    model = SyVLAModel.from_pretrained(assembled)
    assert report["parameters"]["vlm"] == sum(p.numel() for p in model.vlm.parameters())
    assert report["parameters"]["vision_tower"] == sum(p.numel() for p in model.expert.vision_tower.parameters())
    assert sum(report["parameters"].values()) == sum(p.numel() for p in model.parameters())
    assert report["bytes"] == sum(t.numel() * t.element_size() for t in disk_tensors(assembled).values())
    assert report["vlm"] == {"origin": "vlm", "revision": None}
    for path in assembled.glob("*.json"):
        assert str(parts) not in path.read_text(), path.name


def test_shards_are_named_indexed_and_bounded(assembled):
    index = read_json(assembled / "model.safetensors.index.json")
    files = sorted(assembled.glob("model-*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == [path.name for path in files]
    assert set(index["weight_map"]) == set(disk_tensors(assembled))
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in disk_tensors(assembled).values())
    for path in files:
        tensors = disk_tensors_of(path)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        assert size <= 200_000 or len(tensors) == 1
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0, "data must be aligned"


def disk_tensors_of(path):
    from safetensors.torch import load_file

    return load_file(path)


# ---------------------------------------------------------------------- what is initialized


def initialized(folder):
    given = ("vlm.", "expert.vision_tower.")
    return {key: value for key, value in disk_tensors(folder).items() if not key.startswith(given)}


def test_new_weights_follow_the_models_own_initialization(assembled):
    torch.manual_seed(5)
    config = SyVLAModel.from_pretrained(assembled).config
    config.dtype = config.vlm_config.dtype = torch.float32
    usual = SyVLAModel(config).state_dict()
    for name, tensor in initialized(assembled).items():
        assert tensor.dtype == torch.float32, name
        if tensor.numel() >= 1000:
            assert tensor.std().item() == pytest.approx(usual[name].std().item(), rel=0.15), name
            assert not torch.equal(tensor, usual[name])
        elif tensor.ndim == 1:  # biases and norms
            assert torch.equal(tensor, usual[name].float()), name


def test_same_seed_same_weights_whatever_the_shards_and_robots(parts, assembled, tmp_path):
    common = {"config_overrides": OVERRIDES}
    more = {**ARM, "tabletop": {"state_dim": 14, "action_dim": 14}}
    assemble_checkpoint(parts / "vlm", parts / "siglip", tmp_path / "again", embodiments=more, seed=0, **common)
    assemble_checkpoint(parts / "vlm", parts / "siglip", tmp_path / "other", embodiments=ARM, seed=1, **common)
    first, again, other = initialized(assembled), initialized(tmp_path / "again"), initialized(tmp_path / "other")
    assert same(first, {name: again[name] for name in first})
    drawn = [name for name, tensor in first.items() if tensor.std() > 0]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert len({first[name].flatten()[0].item() for name in drawn}) == len(drawn), "no two modules draw the same"


def test_the_callers_random_state_is_untouched(parts, tmp_path):
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    assemble_checkpoint(parts / "vlm", None, tmp_path / "out", config_overrides={**OVERRIDES, **tiny_tower()})
    assert torch.equal(torch.randn(2), expected)


def tiny_tower():
    fields = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"expert_vision_config": {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, **fields}}


def test_without_a_vision_tower_the_configs_is_initialized(parts, tmp_path):
    report = assemble_checkpoint(parts / "vlm", None, tmp_path / "out", config_overrides={**OVERRIDES, **tiny_tower()})
    model = SyVLAModel.from_pretrained(tmp_path / "out")
    assert report["vision_tower"] is None
    assert report["parameters"]["vision_tower"] == 0
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in model.parameters())


# ---------------------------------------------------------------------- kinds of source


def test_untied_head_in_module_layout_and_one_file(parts, tmp_path):
    model = build_vlm(tie=False)
    model.save_pretrained(tmp_path / "vlm", save_original_format=False)
    save_tokenizer(tmp_path / "vlm")
    assert any(key.startswith("model.language_model.") for key in disk_tensors(tmp_path / "vlm"))
    assemble_checkpoint(tmp_path / "vlm", parts / "siglip", tmp_path / "out", config_overrides=OVERRIDES)
    assert same(below(disk_tensors(tmp_path / "out"), "vlm."), model.state_dict())
    loaded = SyVLAModel.from_pretrained(tmp_path / "out")
    assert not torch.equal(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight)


def test_tied_head_that_the_source_repeats_is_stored_once(broken):
    rewrite(broken / "vlm", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assemble_checkpoint(broken / "vlm", broken / "siglip", broken / "out", config_overrides=OVERRIDES)
    assert "vlm.lm_head.weight" not in disk_tensors(broken / "out")
    rewrite(broken / "vlm", lambda t: t["lm_head.weight"][0, 0].add_(1))
    with pytest.raises(ValueError, match=r"tie_word_embeddings.*lm_head\.weight"):
        assemble_checkpoint(broken / "vlm", broken / "siglip", broken / "no", config_overrides=OVERRIDES)


def test_config_as_published_before_nested_text_configs(parts, tmp_path):
    """Text fields at the top level, `mrope` in `rope_scaling`, as in the config.json of Qwen2.5-VL-3B-Instruct."""
    shutil.copytree(parts / "vlm", tmp_path / "vlm")
    config = read_json(tmp_path / "vlm" / "config.json")
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for key in ("model_type", "layer_types", "dtype"):
        text.pop(key, None)
    flat = {**text, **config, "rope_theta": rope["rope_theta"], "torch_dtype": "bfloat16"}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat["vision_config"] = {k: v for k, v in config["vision_config"].items() if k not in ("model_type", "dtype")}
    write_json(tmp_path / "vlm" / "config.json", {k: v for k, v in flat.items() if k not in ("dtype", "_name_or_path")})
    assemble_checkpoint(tmp_path / "vlm", parts / "siglip", tmp_path / "out", config_overrides=OVERRIDES)
    batch = image_batch()
    with torch.no_grad():
        expected = load_vlm(parts / "vlm")(**batch).logits
        assert torch.equal(SyVLAModel.from_pretrained(tmp_path / "out").vlm(**batch).logits, expected)


def test_vision_only_siglip_and_other_encoders_of_pixels(parts, tmp_path):
    save_vision_tower(tmp_path / "siglip", two_towers=False)
    assemble_checkpoint(parts / "vlm", tmp_path / "siglip", tmp_path / "out", config_overrides=OVERRIDES)
    source = {key.removeprefix("vision_model."): value for key, value in disk_tensors(tmp_path / "siglip").items()}
    assert same(tower(tmp_path / "out"), {key: value for key, value in source.items() if not key.startswith("head.")})

    fields = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**fields, image_size=32, patch_size=8)).save_pretrained(tmp_path / "clip")
    assemble_checkpoint(parts / "vlm", tmp_path / "clip", tmp_path / "with_clip", config_overrides=OVERRIDES)
    SyVLAModel.from_pretrained(tmp_path / "with_clip")


@pytest.mark.parametrize("dtype", ["float32", torch.float16])
def test_dtype_converts_every_tensor(parts, tmp_path, dtype):
    assemble_checkpoint(parts / "vlm", parts / "siglip", tmp_path / "out", config_overrides=OVERRIDES, dtype=dtype)
    wanted = torch.float32 if dtype == "float32" else dtype
    own = disk_tensors(tmp_path / "out")
    assert {tensor.dtype for tensor in own.values()} == {wanted}
    source = disk_tensors(parts / "vlm")
    assert same(published("qwen2_5_vl", below(own, "vlm.")), {key: tensor.to(wanted) for key, tensor in source.items()})
    assert next(SyVLAModel.from_pretrained(tmp_path / "out").parameters()).dtype == wanted


def test_overflow_in_a_narrower_dtype_is_an_error(broken):
    rewrite(broken / "vlm", lambda t: t["model.norm.weight"][3].fill_(1e6))
    with pytest.raises(ValueError, match=r"norm\.weight: .* too large for torch\.float16"):
        assemble_checkpoint(
            broken / "vlm", broken / "siglip", broken / "out", config_overrides=OVERRIDES, dtype="float16"
        )
    assert not (broken / "out").exists()


# ---------------------------------------------------------------------- in memory


def test_from_vlm_equals_the_loaded_checkpoint(parts, assembled):
    loaded = SyVLAModel.from_pretrained(assembled)
    model = from_vlm(parts / "vlm", parts / "siglip", embodiments=ARM, config_overrides=OVERRIDES)
    assert same(model.state_dict(), loaded.state_dict())
    assert same(dict(model.named_buffers()), dict(loaded.named_buffers()))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.to_dict() == loaded.generation_config.to_dict()
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(model.tokenizer) == QUERY_TOKEN_ID


def test_from_vlm_takes_models_over_without_copying(parts, assembled, tmp_path):
    vlm = load_vlm(parts / "vlm")
    siglip = save_vision_tower(tmp_path / "again")
    model = from_vlm(vlm, siglip, embodiments=ARM, config_overrides=OVERRIDES)
    assert same(model.state_dict(), SyVLAModel.from_pretrained(assembled).state_dict())
    embedding = vlm.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.data_ptr() == embedding.data_ptr()
    assert getattr(siglip.config.vision_config, "vision_use_head", True), "the source's config is not changed"


def test_models_without_a_checkpoint_need_a_tokenizer_or_an_id(parts, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer: .*query_token_id"):
        from_vlm(build_vlm(), parts / "siglip", config_overrides=OVERRIDES)
    model = from_vlm(build_vlm(), parts / "siglip", config_overrides=NEEDS_NO_TOKENIZER, dtype="float32")
    assert model.dtype == torch.float32
    assemble_checkpoint(build_vlm(), parts / "siglip", tmp_path / "out", config_overrides=NEEDS_NO_TOKENIZER)
    assert same(published("qwen2_5_vl", below(disk_tensors(tmp_path / "out"), "vlm.")), disk_tensors(parts / "vlm"))


def test_query_token_takes_the_tokenizers_next_id(parts):
    tokenizer = AutoTokenizer.from_pretrained(parts / "vlm")
    assert query_token_id(tokenizer) == QUERY_TOKEN_ID == max(tokenizer.get_vocab().values()) + 1
    assert QUERY_TOKEN not in tokenizer.get_vocab()
    tokenizer.add_tokens(["<|other|>", QUERY_TOKEN, "<|more|>"], special_tokens=True)
    assert query_token_id(tokenizer) == QUERY_TOKEN_ID + 1, "a tokenizer that has the token keeps its id"


# ---------------------------------------------------------------------- errors


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def garble(path):
    path.write_bytes(b"\x00" * 64 + path.read_bytes()[64:])


def first_shard(folder):
    return sorted(folder.glob("model-*.safetensors"))[0]


def pickled(folder):
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not opened")


def adapter(folder):
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    (folder / "adapter_config.json").write_text("{}")


def edit_config(folder, **fields):
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **fields})


def full_embedding(folder):
    config = read_json(folder / "config.json")
    config["text_config"]["vocab_size"] = QUERY_TOKEN_ID
    write_json(folder / "config.json", config)
    key = "model.embed_tokens.weight"
    rewrite(folder, lambda t: t.update({key: t[key][:QUERY_TOKEN_ID].clone()}))


def outside_index(folder):
    path = folder / "model.safetensors.index.json"
    index = read_json(path)
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../secret.safetensors")
    write_json(path, index)


def siglip2(folder):
    shutil.rmtree(folder)
    fields = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    Siglip2VisionModel(Siglip2VisionConfig(**fields, patch_size=8, num_patches=16)).save_pretrained(folder)


NORM = "model.layers.1.input_layernorm.weight"
DAMAGE = {
    "missing": (
        lambda r: rewrite(r / "vlm", lambda t: t.pop(NORM)),
        r"vlm: .*1 tensors missing: model\.layers\.1\.input_l",
    ),
    "unknown": (
        lambda r: rewrite(r / "vlm", lambda t: t.update(surprise=torch.zeros(2))),
        r"1 tensors unknown to the model: surprise",
    ),
    "shape": (
        lambda r: rewrite(r / "vlm", lambda t: t.update({NORM: torch.zeros(7)})),
        r"of another shape: model\.layers\.1\.input_layernorm\.weight \(expected \(64,\), got \(7,\)\)",
    ),
    "tower missing": (
        lambda r: rewrite(r / "siglip", lambda t: t.pop("vision_model.post_layernorm.bias")),
        r"vision_tower: .*missing: .*post_layernorm\.bias",
    ),
    "cut": (lambda r: cut(first_shard(r / "vlm")), r"model-00001-of-\d+\.safetensors: not a whole safetensors file"),
    "garbled": (lambda r: garble(first_shard(r / "vlm")), r"not a whole safetensors file"),
    "shard gone": (lambda r: first_shard(r / "vlm").unlink(), r"index names files that are not there: model-00001"),
    "outside": (lambda r: outside_index(r / "vlm"), r"expected names of safetensors files in this folder"),
    "pickle": (lambda r: pickled(r / "vlm"), r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"),
    "adapter": (lambda r: adapter(r / "vlm"), r"PEFT adapter.*merge"),
    "no config": (lambda r: (r / "vlm" / "config.json").unlink(), r"vlm: .*no config\.json"),
    "no tokenizer": (
        lambda r: [p.unlink() for p in (r / "vlm").glob("tokenizer*")],
        r"tokenizer: none could be loaded",
    ),
    "no room": (lambda r: full_embedding(r / "vlm"), r"id is 488, but .* 488 rows.*resize_token_embeddings\(489"),
    "quantized": (
        lambda r: edit_config(r / "vlm", quantization_config={"quant_method": "awq", "bits": 4}),
        r"vlm: vlm is quantized",
    ),
    "needs masks": (
        lambda r: siglip2(r / "siglip"),
        r"Siglip2VisionModel\) needs pixel_attention_mask, spatial_shapes",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_bad_part_is_named_and_leaves_nothing_behind(broken, damage, message):
    damage(broken)
    before = sorted(path.name for path in broken.iterdir())
    with pytest.raises(ValueError, match=message):
        assemble_checkpoint(broken / "vlm", broken / "siglip", broken / "out", config_overrides=OVERRIDES)
    assert sorted(path.name for path in broken.iterdir()) == before


def test_other_families_are_named(parts, tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "glm4v"})
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"family 'glm4v'; SyVLA is tested with qwen2_5_vl"):
        assemble_checkpoint(tmp_path, parts / "siglip", tmp_path / "out")


def test_output_that_holds_something_is_refused(parts, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(FileExistsError, match="not empty"):
            assemble_checkpoint(parts / "vlm", parts / "siglip", output)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    assemble_checkpoint(parts / "vlm", parts / "siglip", tmp_path / "empty", config_overrides=OVERRIDES)
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_failure_while_writing_leaves_nothing_behind(parts, tmp_path):
    class Fails:
        def save_pretrained(self, folder):
            assert (Path(folder) / "config.json").is_file()
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        assemble_checkpoint(
            parts / "vlm",
            parts / "siglip",
            tmp_path / "out",
            config_overrides=OVERRIDES,
            processor=lambda config: Fails(),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config_overrides": {"chunk_sise": 3}}, "no chunk_sise; it has .*chunk_size"),
        ({"config_overrides": {"vlm_config": {}}}, r"config_overrides\.vlm_config: given by another argument"),
        ({"dtype": "int8"}, "dtype: expected auto, float32"),
        ({"vlm_revision": "main"}, r"vlm: a revision \('main'\) belongs to a Hub id"),
        ({"embodiments": {"a.b": {"state_dim": 1, "action_dim": 1}}}, "not a usable name"),
    ],
)
def test_bad_arguments(parts, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        assemble_checkpoint(parts / "vlm", parts / "siglip", tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["/no/such/folder", "./relative/missing", "just-a-name"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(parts, tmp_path, source):
    with pytest.raises(ValueError, match=r"vlm: .*no such folder"):
        assemble_checkpoint(source, parts / "siglip", tmp_path / "out")
