"""What a GPU must do as the CPU does. Each test has a twin that runs everywhere."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.device_parity import TOLERANCE, compare

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; its twin runs on the CPU"),
        ],
    ),
]
VIEWS = ("center", "left_wrist", "right_wrist")


@pytest.mark.parametrize("device", DEVICES)
def test_losses_gradients_mask_and_actions_are_those_of_the_cpu(device):
    differences = compare(device, 8, 12)
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_trains_every_weight_with_finite_gradients(device):
    from benchmarks.scaled_model import make_batch, scaled_config
    from syvla.modeling_syvla import SyVLAModel

    config = scaled_config(8, 12)
    torch.manual_seed(0)
    model = SyVLAModel(config).to(device).train()
    batch = {name: x.to(device) for name, x in make_batch(config, 2, 1).items()}
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_server_on_the_device_answers_with_finite_actions(device, tmp_path, tiny_model, tiny_processor):
    from syvla.serving import PolicyClient, PolicyServer
    from syvla.serving.server.settings import ServerSettings

    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    image = np.asarray(Image.new("RGB", (64, 64), (200, 30, 30)))
    server = PolicyServer.from_pretrained(str(tmp_path), ServerSettings(port=0), device=device)
    with server.start(120), PolicyClient(f"ws://{server.url}") as client:
        answer = client.act(dict.fromkeys(VIEWS, image), np.zeros(14), "lift", seed=1, embodiment="tabletop")
    assert np.isfinite(answer["actions"]).all()
