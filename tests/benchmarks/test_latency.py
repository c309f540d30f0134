"""`benchmarks.latency` at tiny scale: real processes, figures that follow from each other, counts derived by hand."""

import json
from statistics import median

import pytest
import torch

pytest.importorskip("transformers.models.pi0", reason="this transformers has no PI0")

from benchmarks import latency, latency_models, latency_report, reporting
from benchmarks.phases import Phases

COMMAND = ["--device", "cpu", "--dtype", "float32", "--scale", "tiny", "--rounds", "1", "--thought-tokens", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of the pieces and the written section of one run."""
    folder = tmp_path_factory.mktemp("latency")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "RESULTS", folder / "results")
        latency.main([*COMMAND, "--repeats", "2", "--pieces", str(folder / "pieces")])
    return folder / "pieces", json.loads((folder / "results" / "latency_tiny.json").read_text())


@pytest.mark.slow
def test_ratios_are_quotients_of_the_medians(run):
    _, content = run
    (section,) = content["devices"].values()
    calls = {name: model["calls"] for name, model in section["models"].items()}
    pi0 = calls["pi0"]["action"]["p50_seconds"]
    assert content["ratio_action_to_pi0"] == calls["syvla"]["action"]["p50_seconds"] / pi0
    assert content["ratio_refresh_to_pi0"] == calls["syvla"]["refresh"]["p50_seconds"] / pi0
    assert content["denoise_share_of_bound"] == calls["syvla"]["action"]["phases"]["denoise"]["share_of_bound"]
    assert set(latency_report.GOALS) <= set(content)
    assert 0.5 < sum(section["denoise_operators"].values()) <= 1.000001


@pytest.mark.slow
def test_phases_add_up_to_no_more_than_the_call(run):
    pieces, content = run
    (section,) = content["devices"].values()
    for name, model in section["models"].items():
        piece = json.loads((pieces / f"{name}-0.json").read_text())
        for call, figures in model["calls"].items():
            runs = piece["calls"][call]["seconds"]
            assert figures["p50_seconds"] == median(run["total"] for run in runs)
            assert figures["p50_seconds"] <= figures["p95_seconds"]
            assert figures["calls"] == 2
            assert figures["actions_per_second"] == 50 / figures["p50_seconds"]
            for phase in figures["phases"].values():
                assert phase["share_of_bound"] > 0
                assert phase["share_of_bound"] == phase["bound_seconds"] / phase["p50_seconds"]
            counted = sum(phase["gflop"] for phase in figures["phases"].values())
            assert 0.9 * figures["gflop"] <= counted <= figures["gflop"] * 1.000001
    assert "vision" not in section["models"]["syvla"]["calls"]["refresh"]["phases"]
    assert section["models"]["syvla"]["calls"]["think"]["seconds_per_token"] > 0


@pytest.mark.slow
def test_a_measured_piece_is_not_measured_again_unless_the_settings_changed(run, tmp_path, monkeypatch):
    pieces, content = run
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in pieces.iterdir()}
    assert set(written) == {"syvla-0.json", "pi0-0.json"}
    latency.main([*COMMAND, "--repeats", "2", "--pieces", str(pieces)])
    assert {path.name: path.stat().st_mtime_ns for path in pieces.iterdir()} == written
    again = json.loads((tmp_path / "latency_tiny.json").read_text())
    assert again == content
    settings = json.loads((pieces / "pi0-0.json").read_text())["settings"]
    assert latency.read_piece(pieces / "pi0-0.json", settings) is not None
    assert latency.read_piece(pieces / "pi0-0.json", {**settings, "views": 2}) is None


@pytest.mark.slow
def test_packed_weights_are_a_result_of_their_own(run, tmp_path, monkeypatch):
    pieces, content = run
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in pieces.iterdir()}
    options = ["--pack-weights", "--calls", "action", "--repeats", "2"]
    latency.main([*COMMAND, *options, "--pieces", str(pieces)])
    assert {path.name: path.stat().st_mtime_ns for path in pieces.iterdir() if path.name in before} == before
    assert {path.name for path in pieces.iterdir()} == {*before, "syvla-packed-0.json", "pi0-packed-0.json"}
    (name, section), *rest = json.loads((tmp_path / "latency_tiny.json").read_text())["devices"].items()
    assert not rest
    assert name.endswith("float32, packed")
    assert section["settings"]["pack_weights"]
    plain, packed = (found["models"]["syvla"] for found in (next(iter(content["devices"].values())), section))
    assert packed["calls"]["action"]["gflop"] == plain["calls"]["action"]["gflop"]
    assert packed["parameters"] == plain["parameters"]


def test_nothing_is_started_beyond_the_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    latency.main([*COMMAND, "--budget", "-1", "--pieces", str(tmp_path / "pieces")])
    assert "not both models are measured yet" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_published_sizes():
    """3.50 B parameters are PI0's with `transformers`' defaults; 4.44 B are ours (`syvla.modeling_syvla.parameters`)."""
    from transformers import PI0ForConditionalGeneration

    from syvla.modeling_syvla.parameters import count_parameters

    with torch.device("meta"):
        pi0 = PI0ForConditionalGeneration(latency_models.pi0_config("paper"))
    assert round(sum(p.numel() for p in pi0.parameters()) / 1e9, 2) == 3.50
    config = latency_models.syvla_config("paper")
    assert round(count_parameters(config)["total"] / 1e9, 2) == 4.44
    assert config.chunk_size == pi0.config.chunk_size == latency_report.CHUNK
    assert config.num_inference_steps == pi0.config.num_inference_steps == latency_models.FLOW_STEPS


def linear(tokens: int, *sizes: tuple[int, int]) -> int:
    return 2 * tokens * sum(inner * outer for inner, outer in sizes)


@torch.no_grad()
def test_flops_of_six_flow_steps_equal_those_derived_by_hand():
    policy = latency_models.syvla_policy("tiny", torch.float32, "cpu")
    phases = Phases(policy.spans)
    work = {name: phases.work(policy.calls[name], policy.model) for name in ("action", "action, 4 steps")}
    denoise = {name: spans["fast"].flops - spans["context"].flops for name, spans in work.items()}
    config = policy.model.config
    d, suffix, queries = 128, 51, config.num_query_tokens
    views = policy.model.expert.encode_images(torch.zeros(1, 3, 3, 32, 32), torch.ones(1, 3, dtype=torch.bool))
    prefix = 3 * views.shape[2] + 1
    layer = (
        linear(suffix, *[(d, d)] * 4, *[(d, d)] * 2, *[(d, 352)] * 3)
        + 4 * suffix * (prefix + suffix) * d
        + 4 * suffix * queries * d
    )
    coders = linear(50, (14, d), (d, d), (d, d), (d, 14))
    time = linear(1, (d, d), (d, d))
    six = denoise["action"] - denoise["action, 4 steps"]
    assert 6 * (3 * layer + coders) <= six <= 6 * (3 * layer + coders + time)  # times may be embedded once for all


@torch.no_grad()
def test_flops_of_pi0s_prefill_equal_those_derived_by_hand():
    policy = latency_models.pi0_policy("tiny", torch.float32, "cpu", views=1)
    work = Phases(policy.spans).work(policy.calls["action"], policy.model)
    tokens = 256 + 48
    layer = linear(tokens, (32, 32), (32, 16), (32, 16), (32, 32), *[(32, 64)] * 3) + 4 * tokens**2 * 32
    rotary = 2 * 8 * tokens  # the angles are a product of positions and frequencies
    assert work["language"].flops in (2 * layer, 2 * layer + rotary)


def test_spans_are_taken_off_again_when_the_call_fails():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError):
        Phases({"layer": (layer, "forward")}).seconds(lambda: layer(torch.zeros(1, 3)))
    assert "forward" not in vars(layer)
    seconds, each = Phases({"layer": (layer, "forward")}).seconds(lambda: [layer(torch.zeros(1, 2)) for _ in range(3)])
    assert len(each["layer"]) == 3
    assert 0 < seconds["layer"] <= seconds["total"]


def test_windows_of_one_pool_are_weights_like_any_other():
    def build():
        return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64), torch.nn.Linear(64, 128))

    own = latency_models.random_model(build, torch.bfloat16, "cpu", pool_bytes=None)
    shared = latency_models.random_model(build, torch.bfloat16, "cpu", pool_bytes=2 * 64 * 128 * 2)
    assert [p.shape for p in own.parameters()] == [p.shape for p in shared.parameters()]
    assert {p.dtype for p in shared.parameters()} == {torch.bfloat16}
    addresses = [[layer.weight.data_ptr() for layer in model] for model in (own, shared)]
    assert len(set(addresses[0])) == 3
    assert addresses[1][0] == addresses[1][2] != addresses[1][1], "the pool starts over at its end"
    assert all(0.015 < layer.weight.float().std() < 0.025 and layer.bias.count_nonzero() == 0 for layer in shared)
