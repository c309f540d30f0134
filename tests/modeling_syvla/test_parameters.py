"""The default configuration has the paper's size; counted on the meta device, so without memory."""

import sys

import pytest

from syvla.modeling_syvla import SyVLAConfig, SyVLAExpertConfig, SyVLAModel, parameters
from syvla.modeling_syvla.parameters import count_parameters

COBOT = {"cobot_magic": {"state_dim": 14, "action_dim": 14}}


@pytest.fixture(scope="module")
def table():
    return count_parameters(SyVLAConfig(embodiments=COBOT))


def test_vlm_is_qwen2_5_vl_3b(table):
    """3,754,622,976 parameters: 3.75 B in the model card of Qwen2.5-VL-3B-Instruct, tied embeddings once."""
    assert table["VLM"] == 3_754_622_976


def test_action_expert_has_the_paper_s_0_69_billion(table):
    assert 0.685e9 <= table["action expert with adapter"] <= 0.695e9


def test_parts_by_hand(table):
    """Counts from the formulas of the layers: biases, gates and norms included."""
    d, inner, mlp = 1408, 32 * 64, 3776
    layer = 2 * 4 * d * inner + 3 * d * mlp + 3 * d
    assert table["expert: transformer layers"] == 15 * layer + d
    assert table["Feature Query Tokens"] == 20 * 2048
    assert table["adapter"] == 2048 * d + d + d * d + d
    coders = (14 * d + d + d * d + d) * 2 + (d * d + d + d * 14 + 14)
    assert table["expert: state/action encoders and decoders"] == coders
    assert table["expert: time, view and position embeddings"] == 2 * (d * d + d) + 3 * d + 50 * d
    siglip = 12 * (4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768)
    siglip += 3 * 16 * 16 * 768 + 768 + 196 * 768 + 2 * 768
    assert table["expert: image encoder"] == siglip + 768 * d + d


def test_parts_sum_to_the_total(table):
    parts = {name: n for name, n in table.items() if name not in ("total", "action expert with adapter")}
    assert sum(parts.values()) == table["total"]
    tiny = count_parameters(SyVLAConfig.tiny())
    assert tiny["total"] == sum(p.numel() for p in SyVLAModel(SyVLAConfig.tiny()).parameters())


def test_literal_head_width_would_miss_the_paper_s_size():
    """Why head_dim is 64: 1408 / 32 = 44 gives 0.58 B."""
    expert = SyVLAExpertConfig(head_dim=44)
    table = count_parameters(SyVLAConfig(expert_config=expert, embodiments=COBOT))
    assert 0.57e9 < table["action expert with adapter"] < 0.59e9


def test_command_prints_the_table(table, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["parameters"])
    parameters.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in table)
    assert "3754.62 M" in printed
