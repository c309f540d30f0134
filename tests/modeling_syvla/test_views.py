"""Two and four views of any names: a training step, prediction, serving; a trained model gets other views."""

import json

import numpy as np
import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel, SyVLAValueConfig, SyVLAValueModel
from syvla.modeling_syvla.resizing import resize_views
from syvla.processing import build_tiny_processor
from syvla.serving.policies.backend import SyVLABackend
from syvla.serving.wire.dialect_files import load_dialect

SETS = [("front", "wrist"), ("center", "left_wrist", "right_wrist", "side-2")]
ROBOT = {"tabletop": {"state_dim": 14, "action_dim": 14}}


def policy(views):
    torch.manual_seed(0)
    config = SyVLAConfig.tiny(views=views)
    processor = build_tiny_processor(config)
    spread = {"mean": [0.0] * 14, "std": [1.0] * 14}
    processor.set_embodiment("tabletop", {"state": spread, "action": spread})
    return SyVLAModel(config).eval(), processor


def item(views, seed=0, **more):
    rng = np.random.default_rng(seed)
    images = {view: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for view in views}
    robot = {"embodiment": "tabletop", "state": rng.normal(size=14).astype(np.float32), "text": "lift the cube"}
    return {"images": images, **robot, **more}


def predict(model, processor, items):
    torch.manual_seed(1)
    with torch.no_grad():
        return model.predict_actions(**processor.collate(items, padding_side="left"), think=False).actions


@pytest.mark.parametrize("views", SETS)
def test_train_save_predict_and_serve(views, tmp_path):
    model, processor = policy(views)
    assert processor.views == list(views)
    assert processor.disagreements(model.config) == []
    actions = {"actions": np.zeros((8, 14), np.float32)}
    batch = processor.collate([item(views, 0, **actions), item(views[:1], 1, **actions)])
    assert batch["expert_view_mask"].tolist() == [[True] * len(views), [True] + [False] * (len(views) - 1)]
    prompt = processor.tokenizer.decode(batch["input_ids"][0])
    assert all(f"{view.replace('_', ' ')} view: " in prompt for view in views)
    model.train()
    model(**batch).loss.backward()
    gradient = model.expert.view_embedding.weight.grad
    assert gradient.shape[0] == len(views)
    assert (gradient.norm(dim=1) > 0).all()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    backend = SyVLABackend.from_pretrained(str(tmp_path), device="cpu")
    metadata = backend.metadata()
    assert metadata["views"] == list(views)
    assert set(metadata["camera_sizes"]) == set(views)
    again = SyVLAModel.from_pretrained(tmp_path).eval()
    assert again.config.views == list(views)
    torch.testing.assert_close(
        predict(again, processor, [item(views)]), predict(model.eval(), processor, [item(views)])
    )
    keys = load_dialect("lerobot").for_views(views).images
    assert set(keys) == set(views)


@pytest.mark.parametrize("views", SETS)
def test_every_view_matters(views):
    model, processor = policy(views)
    whole = predict(model, processor, [item(views)])
    for view in views:
        other = item(views)
        other["images"][view] = 255 - other["images"][view]
        assert (predict(model, processor, [other]) - whole).abs().max() > 1e-5


def test_the_value_model_takes_other_views():
    config = SyVLAValueConfig.tiny(views=SETS[1], embodiments=ROBOT)
    model = SyVLAValueModel(config).eval()
    _, processor = policy(SETS[1])
    names = ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")
    inputs = processor.expert_inputs([item(SETS[1]), item(SETS[1][:2])])
    assert model(**{name: inputs[name] for name in names}).value.shape[0] == 2


def test_a_further_view_changes_nothing_until_it_is_shown():
    model, processor = policy(("center", "left_wrist"))
    before = predict(model, processor, [item(("center", "left_wrist"))])
    old = model.expert.view_embedding.weight.detach().clone()
    resize_views(model, ["side", "center", "left_wrist"])
    processor.views = list(model.config.views)
    new = model.expert.view_embedding.weight
    assert new.requires_grad
    torch.testing.assert_close(new, torch.cat([old.mean(0, keepdim=True), old]))
    torch.testing.assert_close(
        predict(model, processor, [item(("center", "left_wrist"))]), before, rtol=1e-4, atol=1e-5
    )


def test_a_renamed_view_keeps_its_embedding_and_a_view_can_go():
    model, _ = policy(("center", "left_wrist", "right_wrist"))
    old = model.expert.view_embedding.weight.detach().clone()
    resize_views(model, ["right_wrist", "front"], {"front": "center"})
    torch.testing.assert_close(model.expert.view_embedding.weight, old[[2, 0]])
    assert model.config.views == ["right_wrist", "front"]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], "at least one name"),
        (["a", "a"], "comes twice"),
        (["<|im_end|>"], "letters, digits"),
        ("center", "at least one name"),
        ([3], "letters, digits"),
    ],
)
def test_unusable_names_are_refused(views, message):
    for make in (SyVLAConfig.tiny, SyVLAValueConfig.tiny):
        with pytest.raises(ValueError, match=f"views: .*{message}"):
            make(views=views)


def test_renaming_what_does_not_exist_is_refused():
    model, _ = policy(("center", "left_wrist"))
    with pytest.raises(ValueError, match="views: expected to rename some of"):
        resize_views(model, ["front"], {"front": "head"})


def test_a_config_without_the_field_has_the_papers_views():
    written = json.loads(SyVLAConfig.tiny().to_json_string())
    written.pop("views", None)
    assert SyVLAConfig.from_dict(written).views == ["center", "left_wrist", "right_wrist"]
