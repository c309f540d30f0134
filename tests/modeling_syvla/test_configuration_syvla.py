"""Configuration: the paper's defaults, exact round trips, and errors for what cannot be."""

import inspect
import json

import pytest
from transformers import AutoConfig, Qwen2_5_VLConfig

from syvla.modeling_syvla import VIEWS, SyVLAConfig, SyVLAExpertConfig, SyVLAValueConfig
from syvla.modeling_syvla.configuration_syvla import FORMAT_VERSION

ROBOTS = {"zebra": {"state_dim": 3, "action_dim": 2}, "alpha": {"state_dim": 5, "action_dim": 9}}


def contents(config) -> dict:
    return {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "auto_map")}


def test_defaults_are_the_paper_s():
    config = SyVLAConfig()
    assert (config.num_query_tokens, config.chunk_size, tuple(config.views)) == (20, 50, VIEWS)
    assert (config.intention_decoupling, config.decoupling_quantile, config.decoupling_scope) == (True, 0.05, "sample")
    expert = config.expert_config
    assert (expert.num_hidden_layers, expert.hidden_size, expert.num_attention_heads) == (15, 1408, 32)
    assert expert.ff_ratio == 2.67
    assert expert.mlp_hidden_size == 3776
    assert expert.cross_attention_scope == "all"
    text = config.get_text_config()
    assert (text.num_hidden_layers, text.hidden_size) == (36, 2048)
    assert (text.num_attention_heads, text.num_key_value_heads) == (16, 2)
    assert config.query_token_id < text.vocab_size
    assert config.tie_word_embeddings
    assert config.expert_image_size == 224


@pytest.mark.parametrize(
    "make",
    [
        SyVLAConfig,
        SyVLAConfig.tiny,
        lambda: SyVLAConfig(embodiments=ROBOTS, decoupling_scope="batch", chunk_size=7, time_beta_beta=2.0),
        lambda: SyVLAConfig.tiny(decoupling_choice="strongest", query_noise=0.25),
        lambda: SyVLAConfig(vlm_config=Qwen2_5_VLConfig(text_config={"num_hidden_layers": 4, "vocab_size": 99})),
        lambda: SyVLAConfig(expert_vision_config={"model_type": "dinov2", "hidden_size": 96, "image_size": 70}),
        lambda: SyVLAConfig(expert_config={"mlp_type": "gelu", "ff_ratio": 4.0, "cross_attention_scope": "suffix"}),
    ],
)
def test_round_trip_keeps_every_field(make, tmp_path):
    config = make()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SyVLAConfig
    assert contents(loaded) == contents(config)
    assert contents(SyVLAConfig.from_dict(config.to_dict())) == contents(config)


def test_the_whole_config_comes_back_from_json():
    """As others keep it, the parts of the VLM's config included, whose maps have numbers for keys."""
    config = SyVLAConfig.tiny()
    again = SyVLAConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert json.loads(again.to_json_string(use_diff=False)) == json.loads(config.to_json_string(use_diff=False))


def test_fields_may_be_overridden_while_loading(tmp_path):
    SyVLAConfig.tiny().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(
        tmp_path, num_inference_steps=4, expert_config={"cross_attention_scope": "suffix"}
    )
    assert config.num_inference_steps == 4
    assert config.expert_config.cross_attention_scope == "suffix"
    assert config.expert_config.hidden_size == 128, "what is not overridden stays"


def test_embodiments_get_ids_in_order_of_appearance():
    config = SyVLAConfig(embodiments=ROBOTS)
    assert {name: e["id"] for name, e in config.embodiments.items()} == {"zebra": 0, "alpha": 1}
    assert (config.max_state_dim, config.max_action_dim) == (5, 9)
    config.add_embodiment("beta", 1, 1)
    assert config.embodiments["beta"]["id"] == 2
    sorted_keys = SyVLAConfig(embodiments=dict(sorted(config.embodiments.items())))
    assert {name: e["id"] for name, e in sorted_keys.embodiments.items()} == {"zebra": 0, "alpha": 1, "beta": 2}
    assert list(sorted_keys.embodiments) == ["zebra", "alpha", "beta"]
    assert ROBOTS["zebra"] == {"state_dim": 3, "action_dim": 2}, "the caller's dict is not written to"


def test_ids_may_have_gaps_but_not_collide():
    some = {"a": {"state_dim": 1, "action_dim": 1, "id": 5}, "b": {"state_dim": 1, "action_dim": 1}}
    assert SyVLAConfig(embodiments=some).embodiments["b"]["id"] == 6
    near = {"a": {**some["a"], "id": 2}, "b": some["b"], "c": {**some["a"], "id": 3}}
    assert {name: e["id"] for name, e in SyVLAConfig(embodiments=near).embodiments.items()} == {"a": 2, "c": 3, "b": 4}
    with pytest.raises(ValueError, match=r"embodiments\.b: id 5 is taken"):
        SyVLAConfig(embodiments={**some, "b": {"state_dim": 1, "action_dim": 1, "id": 5}})


@pytest.mark.parametrize("name", ["a.b", "keys", "", "with space", "-x", "type"])
def test_names_that_cannot_be_parameter_names_are_refused(name):
    with pytest.raises(ValueError, match="not a usable name"):
        SyVLAConfig(embodiments={name: {"state_dim": 1, "action_dim": 1}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoupling_scope": "token"}, "decoupling_scope: expected one of 'sample', 'batch', got 'token'"),
        (
            {"decoupling_choice": "median"},
            "decoupling_choice: expected one of 'weakest', 'random', 'strongest', got 'median'",
        ),
        (
            {"decoupling_choice": "random", "intention_decoupling": False},
            "decoupling_choice: 'random' has no effect with intention_decoupling=False",
        ),
        ({"query_noise": -0.1}, "query_noise: expected a finite number, at least 0, got -0.1"),
        ({"query_noise": True}, "query_noise: expected a finite number, at least 0, got True"),
        ({"query_noise": float("nan")}, "query_noise: expected a finite number"),
        (
            {"query_noise": 0.1, "conditioning": "all_hidden_states", "intention_decoupling": False},
            "query_noise: expected 0 with conditioning='all_hidden_states'",
        ),
        ({"decoupling_quantile": 1.0}, "decoupling_quantile: expected a number in"),
        ({"decoupling_quantile": -0.1}, "decoupling_quantile: expected a number in"),
        ({"num_query_tokens": 0}, "num_query_tokens: expected a positive integer, got 0"),
        ({"chunk_size": 0}, "chunk_size: expected a positive integer, got 0"),
        ({"expert_config": {"mlp_type": "relu"}}, r"expert_config\.mlp_type: expected one of 'swiglu', 'gelu'"),
        ({"expert_config": {"cross_attention_scope": "none"}}, "cross_attention_scope: expected one of"),
        ({"expert_config": {"hidden_size": 33}}, "expected an even width, got 33"),
        ({"embodiments": {"a": {"state_dim": 0, "action_dim": 1}}}, r"embodiments\.a: expected positive dimensions"),
    ],
)
def test_impossible_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SyVLAConfig(**fields)


def test_tiny_takes_overrides():
    config = SyVLAConfig.tiny(chunk_size=3, expert_config=SyVLAExpertConfig(hidden_size=64, num_attention_heads=2))
    assert config.chunk_size == 3
    assert config.expert_config.hidden_size == 64
    assert config.num_query_tokens == 8


@pytest.mark.parametrize("kind", [SyVLAConfig, SyVLAValueConfig])
def test_a_checkpoint_of_a_later_version_is_refused(kind, tmp_path):
    """A field that this code does not know could change what the weights mean; the version says whether it does."""
    kind.tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved["format_version"] == FORMAT_VERSION
    path.write_text(json.dumps({**saved, "format_version": FORMAT_VERSION + 1, "of_the_future": 3}))
    for load in (kind.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=r"format_version: .* version 2, this code reads up to 1; upgrade"):
            load(tmp_path)
    path.write_text(json.dumps({k: v for k, v in saved.items() if k != "format_version"}))
    assert AutoConfig.from_pretrained(tmp_path).format_version == 1, "checkpoints before the field"


@pytest.mark.parametrize("kind", [SyVLAConfig, SyVLAValueConfig])
def test_a_checkpoint_without_a_field_gets_the_documented_default(kind, tmp_path):
    config = kind.tiny()
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    needed = {"model_type", "vlm_config", "expert_config", "expert_vision_config", "vision_config"}
    for field, parameter in inspect.signature(kind.__init__).parameters.items():
        if parameter.default is inspect.Parameter.empty or field in needed:
            continue
        assert field in saved
        path.write_text(json.dumps({k: v for k, v in saved.items() if k != field}))
        default = {"embodiments": {}, "views": list(VIEWS), "expert_image_size": 224, "image_size": 224}
        default["chunk_end"] = "noise"  # what training did before there was a choice
        assert getattr(AutoConfig.from_pretrained(tmp_path), field) == default.get(field, parameter.default), field
