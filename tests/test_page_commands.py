"""Commands and snippets of the pages run as they stand, on small stand-ins for what they name, with fewer steps."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager

import numpy as np
import pytest
from page_snippets import ROOT, snippets
from ports import reserved_port

from syvla.serving.client.http_client import http_ready

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
PAGES = {path.name: path for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
FEW_STEPS = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--logging_steps", "1"]
SHORTER = {"--episodes 40": "--episodes 3", "--max_steps 300": "--max_steps 2", "_steps 50": "_steps 1"}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def of(page: str, text: str):
    """The one snippet of a page that holds a text."""
    (found,) = [snippet for snippet in snippets(PAGES[page]) if text in snippet.text]
    return found


def command(*words: str) -> None:
    """Runs one command of this project in this process, and any other one as a program."""
    if words[0] == "syvla-finetune" and "--max_steps" not in words:
        words = (*words, *FEW_STEPS)
    if words[0] in SCRIPTS:
        module, _, function = SCRIPTS[words[0]].partition(":")
        status = getattr(importlib.import_module(module), function)(list(words[1:]))
    else:
        program = sys.executable if words[0] == "python" else words[0]
        status = subprocess.run([program, *words[1:]], env=ENVIRONMENT, timeout=600).returncode
    assert not status, words


@contextmanager
def served(*words: str):
    """The server that a command starts, on a free port; its address."""
    assert words[0] == "syvla-serve"
    module = SCRIPTS[words[0]].partition(":")[0]
    with reserved_port() as port:
        arguments = [*words[1:], "--port", str(port)]
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], env=ENVIRONMENT)
        try:
            until = time.monotonic() + 300
            while not http_ready(f"http://127.0.0.1:{port}"):
                assert process.poll() is None, words
                assert time.monotonic() < until, words
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            assert process.wait(120) == 0, "stopped in order"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with the checkout's examples and its trained checkpoint under the names of the pages."""
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "training", "integrations", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("outputs/demo/checkpoint", "me/my-policy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / "checkpoints" / "tabletop-lift")
    return tmp_path


def record_task(folder) -> None:
    """Ten episodes of 20 frames: two cameras, three joints."""
    from syvla.processing import RobotDatasetWriter

    names = ["shoulder", "elbow", "gripper"]
    features = {
        f"observation.images.{camera}": {
            "dtype": "image",
            "shape": [32, 32, 3],
            "names": ["height", "width", "channels"],
        }
        for camera in ("center", "left_wrist")
    }
    features |= {key: {"dtype": "float32", "shape": [3], "names": names} for key in ("observation.state", "action")}
    rng = np.random.default_rng(0)
    with RobotDatasetWriter(folder, fps=10, features=features, robot_type="arm") as writer:
        for _ in range(10):
            path = np.sin(rng.uniform(0, 6, 3) + 0.2 * np.arange(21)[:, None]).astype(np.float32)
            for step in range(20):
                frame = {key: rng.integers(0, 255, (32, 32, 3), np.uint8) for key in features if "images" in key}
                frame |= {"observation.state": path[step], "action": path[step + 1]}
                writer.add_frame(frame, task="push the block")
            writer.save_episode()


@pytest.mark.slow
def test_fine_tuning(place):
    """README's three commands, those of the page on fine-tuning, and of the one on open loop."""
    record_task(place / "me" / "my_task")
    build, train, serve = of("README.md", "syvla-new --size tiny").commands
    assert (build, train) == of("finetuning.md", "--robot-from me/my_task").commands, "the same, so run once"
    command(*build)
    command(*train)
    with served(*serve):
        pass
    for words in of("finetuning.md", "--adapter lora").commands:
        command(*words)
    assert (place / "outputs" / "merged" / "model.safetensors").is_file()
    for words in of("finetuning.md", "show_augmentation").commands:
        command(*words)
    assert (place / "sheet.png").is_file()
    assert (place / "outputs" / "clean" / "filter.json").is_file()

    held_out, compare, draws = of("openloop.md", "syvla-openloop outputs/my_task").commands
    shutil.rmtree(place / "outputs" / "my_task")
    command(*held_out)
    command(*compare)
    (place / "org").mkdir()
    (place / "org" / "policy").symlink_to(place / "outputs" / "my_task")
    command(*draws)
    run_open_loop_snippet(place)


def run_open_loop_snippet(place) -> None:
    from transformers import AutoModel, AutoProcessor

    from syvla.processing import RobotDataset
    from syvla.serving.policies.in_process import SyVLAPolicy

    folder = place / "outputs" / "my_task"
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    (robot,) = processor.embodiments

    def episodes(numbers):
        return RobotDataset(
            place / "me" / "my_task", embodiment=robot, chunk_size=processor.chunk_size, episodes=numbers
        )

    known = {"model": model, "processor": processor, "held_out": episodes([8, 9]), "training": episodes([0, 1])}
    known["policy"] = SyVLAPolicy(model, processor, robot, {view: view for view in known["held_out"].cameras})
    exec(of("openloop.md", "measure_open_loop").text, known)
    assert np.isfinite(known["numbers"]["error"])
    assert known["result"].spread is not None, "of several draws"


@pytest.mark.slow
def test_the_arm_to_try_it_with(place):
    pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")
    snippet = of("finetuning.md", "single_arm_dataset")
    for words in snippet.commands:
        line = "\0".join(words)
        for shown, tested in SHORTER.items():
            line = line.replace(shown.replace(" ", "\0"), tested.replace(" ", "\0"))
        words = line.split("\0")
        command(*words, *(["--use_cpu", "true"] if words[0] == "syvla-finetune" else []))
    assert (place / "outputs" / "arm_measured" / "eval_results.json").is_file()


@pytest.mark.slow
def test_serving(place):
    """The server's two commands, and a client in Python."""
    alone, secret, open_to_all = of("serving.md", "syvla-serve --model").commands
    view, joints = np.zeros((32, 32, 3), np.uint8), np.zeros(14, np.float32)
    with served(*alone) as port:
        known = {"head": view, "left": view, "right": view, "joints": joints}
        exec(of("serving.md", "PolicyClient").text.replace("8000", str(port)), known)
        assert known["reply"]["actions"].shape == (8, 14)
    assert secret[-2:] == (">", "token")
    line = next(line for line in of("serving.md", "syvla-serve --model").text.splitlines() if "secrets" in line)
    subprocess.run(["bash", "-c", line.replace("python", sys.executable, 1)], check=True, timeout=120)
    with served(*open_to_all):
        assert len((place / "token").read_text().strip()) > 20


@pytest.mark.slow
def test_conversions(place):
    """Recordings of each format, of a few frames, under the names of the page."""
    from source_files import write_aloha, write_libero, write_rh20t

    for number in range(2):
        write_aloha(place / "recordings" / f"episode_{number}.hdf5", number)
    write_libero(place / "libero_goal" / "open_the_top_drawer_demo.hdf5")
    shutil.copytree(ROOT / "tests" / "data" / "rlds_tiny", place / "gs_copy" / "fractal20220817_data")
    write_rh20t(place / "RH20T_cfg3", 1)
    _, *conversions = of("datasets.md", "syvla-convert rh20t").commands
    for words in conversions:
        command(*words, *(["--workers", "1"] if "--workers" in words else []))  # starting eight takes most of the time
    write, convert = of("datasets.md", "--write-mapping").commands
    command(*write)
    shutil.rmtree(place / "data" / "towel")
    mapping = place / "towel.yaml"
    mapping.write_text(mapping.read_text().replace("fps: null", "fps: 30\ntask: fold the towel"))
    command(*convert)
    assert (place / "data" / "towel" / "meta" / "info.json").is_file()


@pytest.mark.slow
def test_looking(place):
    """The report, and the page with a checkpoint's pictures."""
    record_task(place / "me" / "my_task")
    (place / "data").mkdir()
    (place / "data" / "towel").symlink_to(place / "me" / "my_task")
    (place / "outputs" / "my_task").symlink_to(place / "outputs" / "demo" / "checkpoint")
    _, report, model = of("annotation.md", "syvla-look").commands
    command(*report)
    assert (place / "look.html").is_file()
    command(*model, "--report", "seen.html")
    assert (place / "seen.html").is_file()


def test_curl(place):
    """Against a real server whose policy has two dimensions and needs no model."""
    from PIL import Image
    from served_policies import CountingPolicy

    from syvla.serving import PolicyServer
    from syvla.serving.server.settings import ServerSettings

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "head.jpg")
    server = PolicyServer(CountingPolicy(), ServerSettings(port=0)).start(120)
    try:
        line = of("protocol.md", "curl -s").text.replace("8000", str(server.port))
        said = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
        assert np.shape(json.loads(said.stdout)["actions"]) == (6, 2), said
    finally:
        server.stop()


def test_limits(place):
    """Both YAML snippets, for a robot of three joints."""
    import yaml

    from syvla.serving.contract.action_limits import ActionLimits, load_limits

    joints = "".join(
        f'<joint name="{name}" type="revolute"><limit lower="-2" upper="2" velocity="1" effort="1"/></joint>'
        for name in ("shoulder", "elbow", "finger_joint")
    )
    (place / "arm.urdf").write_text(f'<robot name="arm">{joints}</robot>')
    (place / "limits.yaml").write_text(of("safety.md", "joints_from").text)
    limits = load_limits(place / "limits.yaml")["my_robot"]
    names = ["shoulder", "elbow", "gripper"]
    found = ActionLimits.of(limits, 3, names, control_hz=10.0)
    assert found.high[1] == 1.8
    for line in of("safety.md", "workspace: {").text.splitlines():
        ActionLimits.of(yaml.safe_load(line), 3, ["x", "y", "z"], control_hz=10.0)


def test_stopping(place):
    """The guard's snippet, beside an arm that notes what it is told."""
    from types import SimpleNamespace

    sent, stops = [], []
    arm = SimpleNamespace(send=sent.append, quick_stop=stops.append, currents=lambda: np.zeros(7))
    known = {"arm": arm, "curtain": SimpleNamespace(broken=lambda: False)}
    executor = SimpleNamespace(step=lambda *_: np.zeros(7, np.float32), report=None)
    known |= {"executor": executor, "images": {}, "state": np.zeros(7, np.float32), "prompt": "lift"}
    exec(of("safety.md", "EmergencyStop(").text, known)
    assert sent == [], "a dry run"
    assert (place / "run.jsonl").is_file()
    known["emergency"].trigger("the test ends")
    assert len(stops) == 1


def test_faster_inference(place):
    from transformers import AutoModel

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel

    SyVLAModel(SyVLAConfig.tiny()).save_pretrained(place / "tiny")
    known = {"AutoModel": AutoModel, "path": place / "tiny"}
    exec(of("benchmarks.md", "optimize_for_inference()").text, known)
    assert isinstance(known["policy"], SyVLAModel)


def test_an_entry_of_a_streamed_dataset(place):
    from syvla.training.run.arguments import DataArguments, ModelArguments, SyVLATrainingArguments
    from syvla.training.run.recipe import parse_recipe

    (place / "recipe.yaml").write_text(of("streaming.md", "streaming: true").text)
    types = (ModelArguments, DataArguments, SyVLATrainingArguments)
    _, data, _ = parse_recipe(types, ["--config", "recipe.yaml", "--output_dir", "x", "--use_cpu", "true"])
    (entry,) = data.robot_specs
    assert entry["cache_gb"] == 200
    assert entry["streaming"] is True


def test_a_dialect_of_a_client(place):
    from syvla.evaluation.client_dialects import load_client_dialect

    (place / "mine.yaml").write_text(of("evaluation.md", "prompt_axes: 2").text)
    dialect = load_client_dialect(place / "mine.yaml")
    request = dialect.to_request({"center": np.zeros((4, 5, 3), np.uint8)}, np.zeros(8, np.float32), "lift")
    assert request["language"]["task"] == [["lift"]]
    assert request["state"]["arm"].shape == (1, 1, 7)


def test_files_of_a_space_and_the_table_of_contracts(place):
    subprocess.run(["bash", "-c", of("play.md", "outputs/space").text], check=True, timeout=120)
    assert {"app.py", "requirements.txt", "checkpoint"} <= {path.name for path in (place / "outputs/space").iterdir()}
    shutil.copytree(ROOT / "benchmarks" / "results", place / "benchmarks" / "results", copy_function=os.symlink)
    (place / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "contracts.md", place / "docs")
    (place / "scripts").symlink_to(ROOT / "scripts")
    command(*of("contracts.md", "write_contract_table").commands[-1])
    assert (place / "docs" / "contracts.md").read_text() == (ROOT / "docs" / "contracts.md").read_text()
