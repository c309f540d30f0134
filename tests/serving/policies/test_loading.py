"""Loading for inference: dtype by device, and a model made quick without another answer."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from syvla.modeling_syvla.packed_weights import is_packed
from syvla.serving.policies.backend import SyVLABackend
from syvla.serving.policies.in_process import SyVLAPolicy
from syvla.serving.policies.loading import inference_dtype, load_for_inference
from syvla.serving.serve_command import _policy_options, build_parser
from syvla.serving.server.served_robots import served_robots
from syvla.serving.server.settings import ServerSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16, None])
def test_the_cpu_and_explicit_dtypes_keep_what_they_are(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert inference_dtype("auto", CPU, saved) == "auto"
    for device in (CPU, GPU):
        assert inference_dtype("float32", device, saved) == "float32"
        assert inference_dtype(torch.float16, device, saved) == torch.float16


@pytest.mark.parametrize(
    ("saved", "supported", "expected"),
    [
        (torch.float32, True, torch.bfloat16),
        (torch.bfloat16, True, torch.bfloat16),
        (None, True, torch.bfloat16),
        (torch.float16, True, "auto"),
        (torch.float32, False, "auto"),
    ],
)
def test_a_gpu_computes_in_bfloat16_where_it_can(saved, supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert inference_dtype("auto", GPU, saved) == expected


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return str(tmp_path)


def test_what_is_loaded_is_fused_and_answers_as_the_plain_model(checkpoint, make_item):
    model, processor = load_for_inference(checkpoint, device="cpu")
    plain = AutoModel.from_pretrained(checkpoint).eval()
    assert not model.training
    assert model.dtype == torch.float32
    assert all(layer.self_attn.fused.intact() for layer in model.expert.layers)
    assert model.compiled_denoising is None
    inputs = processor.collate([make_item(1, actions=None)], padding_side="left")
    noise = torch.randn(1, 8, 14)
    actions = [m.predict_actions(**inputs, noise=noise).actions for m in (model, plain)]
    np.testing.assert_allclose(*actions, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_a_server_with_packed_weights_is_the_same_policy(checkpoint):
    plain, packed = (
        SyVLABackend.from_pretrained(checkpoint, device="cpu", pack_weights=pack) for pack in (False, True)
    )
    assert is_packed(packed.model)
    assert not is_packed(plain.model)
    assert packed.weights == plain.weights
    options = vars(build_parser().parse_args(["--model", checkpoint, "--pack-weights"]))
    assert options["pack_weights"] is True


def test_a_checkpoint_in_bfloat16_stays_so_on_the_cpu(tiny_model, tiny_processor, tmp_path):
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    assert load_for_inference(str(tmp_path), device="cpu")[0].dtype == torch.bfloat16
    assert load_for_inference(str(tmp_path), device="cpu", dtype="float32")[0].dtype == torch.float32


def test_the_server_is_asked_to_compile():
    assert _policy_options(build_parser().parse_args(["--model", "x", "--compile"]))["compile"] is True
    assert _policy_options(build_parser().parse_args(["--model", "x"]))["compile"] is False


def test_limits_of_the_checkpoint_hold_at_the_server_unless_its_own_are_given(tiny_model, tiny_processor, tmp_path):
    entry = tiny_processor.embodiments["arm"]
    tiny_processor.set_embodiment("arm", entry["statistics"], action_limits={"low": [-0.5, None]})
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    metadata = SyVLABackend.from_pretrained(str(tmp_path), device="cpu", embodiments=["arm"]).metadata()
    actions, state = np.full((2, 2), -3.0, np.float32), np.zeros(3, np.float32)
    cameras = {"center": "top", "left_wrist": "left", "right_wrist": "right"}

    def limited(**settings):
        robot = served_robots(metadata, ServerSettings(cameras=cameras, **settings))["arm"]
        return robot.limits.apply(actions, state)[0].tolist()

    assert limited() == [[-0.5, -3], [-0.5, -3]]
    assert limited(action_limits={"arm": {"low": [None, -1]}}) == [[-3, -1], [-3, -1]]
    with pytest.raises(ValueError, match="as many state as action dimensions; got 3 and 2"):
        limited(action_limits={"arm": {"max_step": [0.1, 0.1], "start_from_state": True}})


def test_thoughts_are_never_sampled(tiny_model, tiny_processor, tmp_path, make_item):
    """A request's seed must decide its answer, whatever the VLM's generation config says."""
    config = tiny_model.generation_config
    config.do_sample, config.temperature, config.top_k = True, 5.0, 0
    item = make_item(1)
    policy = SyVLAPolicy(
        tiny_model, tiny_processor, "tabletop", {view: view for view in item["images"]}, think=True, max_new_tokens=12
    )
    inputs = policy.inputs([item["images"]], [item["state"]], ["lift"])
    thoughts = {policy.intention(inputs).thoughts[0] for _ in range(4)}
    assert len(thoughts) == 1
