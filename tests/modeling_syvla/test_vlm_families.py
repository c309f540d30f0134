"""Every family that SyVLA names as tested: assembled, it learns, thinks, acts and comes out again."""

import numpy as np
import pytest
import torch
import transformers
from pretrained_parts import disk_tensors, image_batch, load_vlm, save_vision_tower, save_vlm
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from syvla.modeling_syvla import SyVLAModel, checkpoint_parts
from syvla.modeling_syvla.assemble import assemble_checkpoint
from syvla.modeling_syvla.checkpoint_parts import VLM_FAMILIES
from syvla.modeling_syvla.export_vlm import export_vlm
from syvla.processing import build_tiny_processor

ROBOTS = {"tabletop": {"state_dim": 14, "action_dim": 14}, "arm": {"state_dim": 3, "action_dim": 2}}
EXPERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32, "ff_multiple_of": 32}
OVERRIDES = {"expert_config": EXPERT, "num_query_tokens": 4, "chunk_size": 8}
INSTALLED = tuple(map(int, transformers.__version__.split(".")[:2]))
FAMILIES = [f for f in VLM_FAMILIES if f in CONFIG_MAPPING_NAMES and (f != "qwen3_5" or INSTALLED >= (5, 23))]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """Folder with `vlm`, `siglip` and `syvla` of one family, float32."""
    root = tmp_path_factory.mktemp(request.param)
    save_vlm(root / "vlm", family=request.param, dtype=torch.float32, files=True)
    save_vision_tower(root / "siglip")
    assemble_checkpoint(root / "vlm", root / "siglip", root / "syvla", embodiments=ROBOTS, config_overrides=OVERRIDES)
    return root


@pytest.fixture
def model(folder):
    return SyVLAModel.from_pretrained(folder / "syvla")


@pytest.fixture
def processor(model):
    processor = build_tiny_processor(model.config)
    for name, robot in ROBOTS.items():
        statistics = {kind: {"mean": np.zeros(n), "std": np.ones(n)} for kind, n in
                      (("state", robot["state_dim"]), ("action", robot["action_dim"]))}  # fmt: skip
        processor.set_embodiment(name, statistics)
    return processor


def test_logits_are_the_families_own(folder, model):
    reference = load_vlm(folder / "vlm")
    batch = image_batch(dtype=torch.float32)
    with torch.no_grad():
        expected = reference(**batch).logits
        torch.testing.assert_close(model.get_output_embeddings()(model.encode(**batch)), expected, atol=0, rtol=0)
        assert torch.equal(model.vlm(**batch).logits, expected)


def test_losses_reach_every_part(model, processor, unequal_items, make_chat):
    model.train()
    output = model(**processor.collate([*unequal_items, make_chat()]))
    output.loss.backward()
    assert output.loss.isfinite()
    vlm, expert = model.vlm.model, model.expert
    for weight in (
        vlm.visual.patch_embed.proj.weight,
        vlm.language_model.embed_tokens.weight,
        model.action_queries.weight,
        expert.layers[0].mlp.up_proj.weight,
        next(expert.vision_tower.parameters()),
    ):
        assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("think", [False, True])
def test_batch_equals_single_calls_and_thoughts_on_the_cache_equal_recomputation(
    model, processor, unequal_items, think
):
    observations = [{k: v for k, v in item.items() if k not in ("actions", "thought")} for item in unequal_items]
    noise = torch.randn(3, 8, 14, generator=torch.Generator().manual_seed(1))
    options = (
        {"max_new_tokens": 5, "do_sample": False, "tokenizer": processor.tokenizer, "think": True} if think else {}
    )
    together = model.predict_actions(**processor.collate(observations, padding_side="left"), noise=noise, **options)
    for i, item in enumerate(observations):
        inputs = processor.collate([item])
        alone = model.predict_actions(**inputs, noise=noise[i : i + 1], **options)
        torch.testing.assert_close(together.query_states[i], alone.query_states[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.actions[i], alone.actions[0], atol=5e-5, rtol=0)
        if think:
            thought = alone.thought_ids
            end = torch.tensor([[model.config.get_text_config().eos_token_id]])
            if (thought == end).any():
                thought = thought[:, : int((thought == end).int().argmax())]
            queries = torch.full((1, model.config.num_query_tokens), model.config.query_token_id)
            ids = torch.cat((inputs["input_ids"], thought, end, queries), dim=1)
            images = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
            with torch.no_grad():
                full = model.select_query_states(model.encode(ids, **images), ids)
            torch.testing.assert_close(alone.query_states, full, atol=1e-5, rtol=0)


def test_the_image_matters(model, processor, make_item):
    inputs = processor.collate([make_item(1)])
    other = processor.collate([make_item(2)])
    with torch.no_grad():
        states = model(**inputs).query_states
        changed = model(**{**inputs, "pixel_values": other["pixel_values"]}).query_states
    assert (states - changed).abs().max() > 1e-3


def test_export_gives_the_source(folder, tmp_path):
    export_vlm(folder / "syvla", tmp_path / "vlm")
    own, source = disk_tensors(tmp_path / "vlm"), disk_tensors(folder / "vlm")
    assert own.keys() == source.keys()
    assert all(torch.equal(own[key], source[key]) for key in own)


def test_a_family_that_the_installed_transformers_runs_wrongly_is_refused(monkeypatch, tmp_path):
    save_vlm(tmp_path / "vlm", family=FAMILIES[-1], files=True)
    monkeypatch.setitem(checkpoint_parts._OLDEST_TRANSFORMERS, FAMILIES[-1], (99, 1))
    with pytest.raises(ValueError, match=r"needs transformers 99\.1 or newer; installed is \d"):
        assemble_checkpoint(tmp_path / "vlm", None, tmp_path / "out", config_overrides=OVERRIDES)
