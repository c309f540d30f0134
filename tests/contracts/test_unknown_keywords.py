"""A keyword that nothing reads raises, wherever the public classes take keywords; a misspelled one is named beside it."""

import numpy as np
import pytest
import torch

from syvla.modeling_syvla import (
    SyVLAConfig,
    SyVLAExpertConfig,
    SyVLAForConditionalGeneration,
    SyVLAModel,
    SyVLAValueConfig,
    SyVLAValueModel,
)
from syvla.processing import (
    MixtureBatchSampler,
    MultimodalDataset,
    RobotDataset,
    RobotDatasetWriter,
    build_tiny_processor,
)


@pytest.fixture
def observation(tiny_processor):
    image = np.zeros((32, 32, 3), np.uint8)
    return tiny_processor(images={"center": image}, text="go", state=np.zeros(3), embodiment="arm")


STATISTICS = {kind: {"mean": [0.0], "std": [1.0]} for kind in ("state", "action")}

MISSPELLED = {
    "predict_actions": (lambda m, p, x, d: m.predict_actions(**x, num_step=1), "'num_step'; did you mean 'num_steps'"),
    "predict_actions with a thought": (
        lambda m, p, x, d: m.predict_actions(**x, think=True, tokenizer=p.tokenizer, max_new_token=1),
        "'max_new_token'",
    ),
    "SyVLAConfig": (lambda m, p, x, d: SyVLAConfig(num_query_token=3), "did you mean 'num_query_tokens'"),
    "SyVLAConfig.tiny": (lambda m, p, x, d: SyVLAConfig.tiny(chunk_sizes=3), "did you mean 'chunk_size'"),
    "SyVLAConfig of parts": (
        lambda m, p, x, d: SyVLAConfig(expert_config={"hidden_sizes": 3}), "did you mean 'hidden_size'"
    ),
    "SyVLAConfig.from_pretrained": (
        lambda m, p, x, d: SyVLAConfig.from_pretrained(d, chunk_sizes=3), "did you mean 'chunk_size'"
    ),
    "SyVLAExpertConfig": (lambda m, p, x, d: SyVLAExpertConfig(head_dims=3), "did you mean 'head_dim'"),
    "SyVLAValueConfig": (lambda m, p, x, d: SyVLAValueConfig(hidden_sizes=3), "did you mean 'hidden_size'"),
    "from_pretrained": (lambda m, p, x, d: SyVLAModel.from_pretrained(d, chunk_sizes=3), "did you mean 'chunk_size'"),
    "save_pretrained": (lambda m, p, x, d: m.save_pretrained(d, max_shard_sise="1GB"), "did you mean 'max_shard_size'"),
    "the processor's save_pretrained": (
        lambda m, p, x, d: p.save_pretrained(d, commit_mesage="x"), "did you mean 'commit_message'"
    ),
    "batch_decode": (lambda m, p, x, d: p.batch_decode([[1]], skip_special_token=True), "did you mean 'skip_special_tokens'"),
    "decode": (lambda m, p, x, d: p.decode([1], skip_special_token=True), "did you mean 'skip_special_tokens'"),
    "post_process_image_text_to_text": (
        lambda m, p, x, d: p.post_process_image_text_to_text([[1]], clean_up_tokenization_space=True),
        "did you mean 'clean_up_tokenization_spaces'",
    ),
    "an item": (
        lambda m, p, x, d: p.collate([{"images": {}, "text": "go", "thougt": "left", "embodiment": "arm"}]),
        "item: unexpected key 'thougt'; did you mean 'thought'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", MISSPELLED)
def test_a_misspelled_keyword_is_named(tiny_model, tiny_processor, observation, tmp_path, where):
    tiny_model.save_pretrained(tmp_path)
    call, message = MISSPELLED[where]
    with pytest.raises((TypeError, ValueError), match=message):
        call(tiny_model, tiny_processor, observation, tmp_path)


UNKNOWN = {
    "SyVLAModel.forward": lambda m, p, x, d: m(**x, zzz=1),
    "SyVLAModel.run_vlm": lambda m, p, x, d: m.run_vlm(x["input_ids"], None, None, None, None, zzz=1),
    "SyVLAModel.get_image_features": lambda m, p, x, d: m.get_image_features(
        x["pixel_values"], x["image_grid_thw"], zzz=1
    ),
    "SyVLAForConditionalGeneration.get_image_features": lambda m, p, x, d: SyVLAForConditionalGeneration(
        m.config
    ).get_image_features(x["pixel_values"], x["image_grid_thw"], zzz=1),
    "SyVLAModel.predict_query_states": lambda m, p, x, d: m.predict_query_states(x["input_ids"], zzz=1),
    "SyVLAModel.predict_actions": lambda m, p, x, d: m.predict_actions(**x, zzz=1),
    "SyVLAModel.from_pretrained": lambda m, p, x, d: SyVLAModel.from_pretrained(d, zzz=1),
    "SyVLAModel.save_pretrained": lambda m, p, x, d: m.save_pretrained(d, zzz=1),
    "SyVLAModel.add_embodiment": lambda m, p, x, d: m.add_embodiment("new", 2, 2, zzz=1),
    "SyVLAModel.generate": lambda m, p, x, d: m.generate(x["input_ids"], zzz=1),
    "SyVLAForConditionalGeneration": lambda m, p, x, d: SyVLAForConditionalGeneration(m.config)(x["input_ids"], zzz=1),
    "SyVLAForConditionalGeneration.from_pretrained": (
        lambda m, p, x, d: SyVLAForConditionalGeneration.from_pretrained(d, zzz=1)
    ),
    "SyVLAValueModel": lambda m, p, x, d: SyVLAValueModel(SyVLAValueConfig.tiny(embodiments={}))(
        None, None, None, zzz=1
    ),
    "build_tiny_processor": lambda m, p, x, d: build_tiny_processor(zzz=1),
    "SyVLAProcessor": lambda m, p, x, d: type(p)(zzz=1),
    "SyVLAProcessor.__call__": lambda m, p, x, d: p(text="go", zzz=1),
    "SyVLAProcessor._get_num_multimodal_tokens": lambda m, p, x, d: p._get_num_multimodal_tokens([(32, 32)], zzz=1),
    "SyVLAProcessor.apply_chat_template": lambda m, p, x, d: p.apply_chat_template(
        [{"role": "user", "content": "go"}], zzz=1
    ),
    "SyVLAProcessor.collate": lambda m, p, x, d: p.collate([], zzz=1),
    "SyVLAProcessor.set_embodiment": lambda m, p, x, d: p.set_embodiment("new", STATISTICS, zzz=1),
    "SyVLAProcessor.decode_actions": lambda m, p, x, d: p.decode_actions(torch.zeros(8, 2), "arm", zzz=1),
    "SyVLAProcessor.save_pretrained": lambda m, p, x, d: p.save_pretrained(d, zzz=1),
    "MixtureBatchSampler": lambda m, p, x, d: MixtureBatchSampler([3], batch_size=1, zzz=1),
    "RobotDataset": lambda m, p, x, d: RobotDataset(d, zzz=1),
    "RobotDatasetWriter": lambda m, p, x, d: RobotDatasetWriter(d, fps=1, features={}, zzz=1),
    "MultimodalDataset": lambda m, p, x, d: MultimodalDataset(d, zzz=1),
}


@pytest.mark.parametrize("where", UNKNOWN)
def test_an_unknown_keyword_raises(tiny_model, tiny_processor, observation, tmp_path, where):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises((TypeError, ValueError), match="zzz"):
        UNKNOWN[where](tiny_model, tiny_processor, observation, tmp_path)


def test_arguments_of_a_thought_that_will_not_be_are_refused(tiny_model, observation):
    states = tiny_model.predict_query_states(observation["input_ids"], observation["attention_mask"],
                                             observation["pixel_values"], observation["image_grid_thw"])[0]  # fmt: skip
    for options in ({"do_sample": True}, {"think_budget": 1.0}):
        with pytest.raises(TypeError, match=f"{next(iter(options))}'; it may act on a thought, .*: pass think=True"):
            tiny_model.predict_actions(**observation, **options)
    for options in ({"do_sample": True}, {"think": True}):
        with pytest.raises(TypeError, match=f"{next(iter(options))}'; .*leave query_states out"):
            tiny_model.predict_actions(**observation, query_states=states, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"statistics": {**STATISTICS, "actions": {}}},
            "statistics: expected the keys state and action, got 'actions'",
        ),
        (
            {"normalization": {"actions": "quantile"}},
            "normalization: expected the keys state and action, got 'actions'",
        ),
        ({"state_names": ["a", "b"]}, r"state_names: expected 1 for embodiment 'new', got \['a', 'b'\]"),
        ({"action_units": "m"}, "action_units: expected 1 for embodiment 'new', got 'm'"),
    ],
)
def test_what_set_embodiment_would_forget_is_refused(tiny_processor, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor.set_embodiment("new", **{"statistics": STATISTICS, **changes})
    assert "new" not in tiny_processor.embodiments
