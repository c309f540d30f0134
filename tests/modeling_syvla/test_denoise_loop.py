"""The flow steps with everything fixed beforehand against one `predict_velocity` per step, plain and compiled."""

import copy
import pickle
import shutil
from dataclasses import replace

import pytest
import torch

from syvla.modeling_syvla.denoise_loop import CompiledDenoising, denoise, fixed_context, step_times
from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_matching import integrate
from syvla.modeling_syvla.flow_solver import FlowSolver

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile on the CPU needs a C++ compiler"
)
WIDTH = 14


def observation(model, batch: int, seed: int = 0, missing: bool = True, robots: tuple[int, ...] = ()):
    """Random query states and observation, and noise, for `sample_actions`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    mask = torch.ones(batch, 3, dtype=torch.bool)
    mask[-1, 1] = not missing
    query_states = draw(batch, 8, model.config.get_text_config().hidden_size)
    seen = ExpertObservation(
        state=draw(batch, WIDTH),
        embodiment_ids=torch.tensor(robots or (0,) * batch),
        pixel_values=draw(batch, 3, 3, 32, 32),
        view_mask=mask,
    )
    return {"query_states": query_states, "observation": seen, "noise": draw(batch, 8, WIDTH)}


def warnings_of(caplog) -> list[str]:
    """Ours; the compiler logs as well."""
    return [r.getMessage() for r in caplog.records if r.name == "syvla.modeling_syvla.denoise_loop"]


@torch.no_grad()
def step_by_step(model, given, num_steps: int, continuation=None) -> torch.Tensor:
    """The definition: `predict_velocity` from the same context at every step."""
    context = model.encode_expert_context(given["query_states"], given["observation"])
    solver = FlowSolver.of(model.config, num_steps)
    actions = integrate(lambda x, t: model.expert.predict_velocity(x, t, context), given["noise"], solver, continuation)
    width = torch.tensor([[14, 2][i] for i in given["observation"].embodiment_ids.tolist()])
    return torch.where(torch.arange(WIDTH) < width[:, None, None], actions, 0.0)


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("robots", [(0, 0), (1, 1), (1, 0)])
@pytest.mark.parametrize("scope", ["all", "suffix"])
def test_loop_equals_one_call_per_step(make_model, robots, missing, scope):
    model = make_model(expert={"cross_attention_scope": scope})
    given = observation(model, 2, missing=missing, robots=robots)
    expected = step_by_step(model, given, 4)
    torch.testing.assert_close(model.sample_actions(**given, num_steps=4), expected, atol=1e-5, rtol=0)
    model.optimize_for_inference(onednn=False)
    torch.testing.assert_close(model.sample_actions(**given, num_steps=4), expected, atol=1e-5, rtol=0)
    if torch.backends.mkldnn.is_available():
        model.optimize_for_inference(onednn=True)
        torch.testing.assert_close(model.sample_actions(**given, num_steps=4), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", [{}, {"flow_solver": "ab2", "flow_grid_power": 2.5}])
def test_loop_continues_a_chunk(make_model, solver):
    tiny_model = make_model(**solver)
    given = observation(tiny_model, 2)
    continuation = (torch.randn(2, 8, WIDTH), torch.rand(2, 8))
    expected = step_by_step(tiny_model, given, 3, (continuation[0], continuation[1][..., None]))
    got = tiny_model.sample_actions(**given, num_steps=3, continuation=continuation)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_steps_write_into_one_buffer_and_leave_the_prefix_alone(tiny_model, monkeypatch):
    given = observation(tiny_model, 1)
    expert, seen = tiny_model.expert, []
    with torch.no_grad():
        context = tiny_model.encode_expert_context(given["query_states"], given["observation"])
        kept = [(k.clone(), v.clone()) for k, v in context.prefix]
        original = expert.velocity_at
        monkeypatch.setattr(expert, "velocity_at", lambda x, t, c: seen.append(c) or original(x, t, c))
        times = step_times(expert, FlowSolver(3), torch.device("cpu"))
        denoise(expert, given["noise"], times, fixed_context(expert, context, 8), FlowSolver(3))
    addresses = {tuple(part.data_ptr() for layer in c.buffers for part in layer) for c in seen}
    assert len(seen) == 3
    assert len(addresses) == 1, "every step sees the same memory"
    tokens = kept[0][0].shape[2]
    for buffers, prefix in zip(seen[-1].buffers, kept, strict=True):
        assert buffers[0].shape[2] == tokens + 9
        for whole, part in zip(buffers, prefix, strict=True):
            assert torch.equal(whole[:, :, :tokens], part)


# ---------------------------------------------------------------- compiled


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("whole_loop", [False, True])
def test_compiled_loop_equals_eager_and_other_shapes_run_as_they_are(make_model, caplog, whole_loop):
    model = make_model(expert={"num_hidden_layers": 1}, flow_solver="ab2", flow_grid_power=2.0)
    given, pair = observation(model, 1), observation(model, 2)
    expected, expected_pair = (step_by_step(model, x, 2) for x in (given, pair))
    model.optimize_for_inference(compile=True, whole_loop=whole_loop)
    for _ in range(2):
        torch.testing.assert_close(model.sample_actions(**given, num_steps=2), expected, atol=1e-5, rtol=0)
    every_view = replace(given["observation"], view_mask=torch.ones(1, 3, dtype=torch.bool))
    all_there = {**given, "observation": every_view}
    counters = torch._dynamo.utils.counters["stats"]
    graphs = counters["unique_graphs"]
    got = model.sample_actions(**all_there, num_steps=2)
    torch.testing.assert_close(got, step_by_step(model, all_there, 2), atol=1e-5, rtol=0)
    assert not warnings_of(caplog), "a camera that comes and goes changes no shape"
    for _ in range(2):
        torch.testing.assert_close(model.sample_actions(**pair, num_steps=2), expected_pair, atol=1e-5, rtol=0)
    assert counters["unique_graphs"] == graphs, "nothing else was compiled"
    messages = warnings_of(caplog)
    assert len(messages) == 1
    assert "compiled for batch 1" in messages[0]
    assert "got batch 2" in messages[0]
    assert "max_shapes=1" in messages[0]
    model.compiled_denoising.strict = True
    with pytest.raises(RuntimeError, match="got batch 2"):
        model.sample_actions(**pair, num_steps=2)
    with pytest.raises(RuntimeError, match="mixes robots"):
        model.sample_actions(**observation(model, 2, robots=(0, 1)))
    if not whole_loop:  # weights that moved away: compiled code must not go on with the old ones
        model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()}, assign=True)
        got = model.sample_actions(**given, num_steps=2)
        torch.testing.assert_close(got, step_by_step(model, given, 2), atol=1e-5, rtol=0)


def test_without_a_compiler_it_falls_back_with_one_warning_or_refuses(tiny_model, caplog, monkeypatch):
    def broken(function, **options):
        def run(*args, **kwargs):
            raise RuntimeError("no working C++ compiler\nmore lines")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    given = observation(tiny_model, 1)
    expected = step_by_step(tiny_model, given, 2)
    tiny_model.compiled_denoising = CompiledDenoising()
    for _ in range(3):
        torch.testing.assert_close(tiny_model.sample_actions(**given, num_steps=2), expected, atol=1e-5, rtol=0)
    messages = warnings_of(caplog)
    assert len(messages) == 1
    assert "no working C++ compiler" in messages[0]
    tiny_model.compiled_denoising = CompiledDenoising(strict=True)
    with pytest.raises(RuntimeError, match=r"torch.compile failed: .*no working C\+\+ compiler"):
        tiny_model.sample_actions(**given, num_steps=2)
    tiny_model.optimize_for_inference(compile=True)
    assert tiny_model.compiled_denoising is None
    assert "without compile: torch.compile failed: RuntimeError: no working C++ compiler" in caplog.text
    with pytest.raises(ValueError, match=r"compile is not possible here: .*no working C\+\+ compiler"):
        tiny_model.optimize_for_inference(compile=True, strict=True)


def test_copies_compile_for_themselves():
    compiled = CompiledDenoising(3, True, False)
    compiled._shapes.append({"batch": 1})
    for copied in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert (copied.max_shapes, copied.strict, copied.whole_loop) == (3, True, False)
        assert copied._shapes == []
    with pytest.raises(ValueError, match="max_shapes"):
        CompiledDenoising(0)
