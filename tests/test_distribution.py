"""Wheel and source distribution, installed outside of the checkout: in a project with generic names, nothing collides."""

import csv
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bare_environment import BareEnvironment

ROOT = Path(__file__).resolve().parents[1]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = METADATA["project"]["scripts"]
NOT_SOURCE = (".git", ".venv*", "outputs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")

pytestmark = pytest.mark.slow


def build(kind: str, source: Path, output: Path) -> Path:
    """Builds with the setuptools of the running Python, as `pip wheel --no-build-isolation` does."""
    output.mkdir(parents=True, exist_ok=True)
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, output], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return output / built.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    return build("sdist", folder / "checkout", folder / "dist")


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory):
    """Of the source distribution, as a package index's users get it where no wheel suits them."""
    copy = tmp_path_factory.mktemp("source") / "syvla"
    shutil.copytree(unpacked, copy)
    return build("wheel", copy, copy.parent / "dist")


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    environment = BareEnvironment(tmp_path_factory.mktemp("environment"))
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A user's project whose modules have the names of our folders; importing one of them ends the process."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("training/__init__.py", "evaluation/__init__.py", "modeling_syvla/__init__.py"):
        (folder / name).parent.mkdir()
    for name in (
        "training/__init__.py",
        "evaluation/__init__.py",
        "modeling_syvla/__init__.py",
        "processing.py",
        "serving.py",
    ):
        (folder / name).write_text("raise SystemExit('a module of the project was imported')\n")
    return folder


def test_the_wheel_has_one_top_level_name_and_the_files_of_the_checkout(wheel):
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        files = [row[0] for row in csv.reader(archive.read(record).decode().splitlines())]
    assert {name.split("/")[0] for name in files if ".dist-info/" not in name} == {"syvla"}
    folders = [folder for folder in METADATA["tool"]["setuptools"]["package-dir"].values() if folder != "syvla"]
    ours = {path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert {Path(name) for name in files if name.endswith(".py")} == {
        *(Path("syvla") / path for path in ours),
        *(path.relative_to(ROOT) for path in (ROOT / "syvla").glob("*.py")),
    }


def test_the_source_distribution_carries_the_tests_and_what_they_read(unpacked):
    for name in ("tests/conftest.py", "tests/support/bare_environment.py", "benchmarks/reporting.py", "CITATION.cff"):
        assert (unpacked / name).is_file(), name
    here = {
        path.relative_to(ROOT)
        for path in (ROOT / "tests").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there = {path.relative_to(unpacked) for path in (unpacked / "tests").rglob("*") if path.is_file()}
    assert here == there


def test_tests_run_in_an_unpacked_source_distribution(unpacked, tmp_path):
    """Its `syvla/` has no links to the folders beside it."""
    assert not (unpacked / "syvla" / "training").exists()
    environment = BareEnvironment(tmp_path / "environment")
    tests = ["tests/test_house.py", "tests/evaluation/test_success_rate.py", "tests/serving/client/test_retries.py"]
    result = environment.run("python", "-m", "pytest", "-p", "no:cacheprovider", *tests, cwd=unpacked)
    assert " passed" in result.stdout


def test_data_files_come_with_the_wheel(environment, tmp_path):
    """Every file of the checkout that package code reads, at its place in the installed package."""
    patterns = METADATA["tool"]["setuptools"]["package-data"]
    expected = {
        path.relative_to(ROOT)
        for package, globs in patterns.items()
        for glob in globs
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(glob)
    }
    for kind in ("training/recipes/finetune.yaml", "training/accelerate_configs/zero2.yaml", "serving/rl/page.html"):
        assert Path(kind) in expected
    for folder, suffixes in {"training": ".yaml", "serving": (".yaml", ".html"), "model_cards": ".md"}.items():
        for path in (ROOT / folder).rglob("*"):
            assert not path.name.endswith(suffixes) or path.relative_to(ROOT) in expected, f"{path} is not in the wheel"
    installed = environment.site_packages / "syvla"
    assert not [path for path in expected if not (installed / path).is_file()]


def test_every_command_runs_in_a_project_with_generic_names(environment, project):
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda script: environment.run(script, "--help", cwd=project, path=["."]), SCRIPTS)
    for script, result in zip(SCRIPTS, results, strict=True):
        assert "usage: " in result.stdout, script
        assert "a module of the project" not in result.stdout + result.stderr


PREPARE = """
import sys, json
from pathlib import Path
import numpy as np, torch
from syvla import RobotDatasetWriter, SyVLAConfig, SyVLAModel
from syvla.processing import build_tiny_processor
import syvla
assert "site-packages" in syvla.__file__, syvla.__file__
out = Path(sys.argv[1])
torch.manual_seed(0)
config = SyVLAConfig.tiny(embodiments={})
SyVLAModel(config).save_pretrained(out / "base")
build_tiny_processor(config).save_pretrained(out / "base")
features = {"observation.images.head": {"dtype": "image", "shape": [32, 32, 3], "names": ["height", "width", "channels"]}}
for key in ("observation.state", "action"):
    features[key] = {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]}
rng = np.random.default_rng(0)
with RobotDatasetWriter(out / "robot", fps=10, features=features, use_videos=False) as writer:
    for episode in range(2):
        for step in range(10):
            frame = {"observation.images.head": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)}
            frame |= {key: rng.normal(size=3).astype(np.float32) for key in ("observation.state", "action")}
            writer.add_frame(frame, "lift")
        writer.save_episode()
"""

LOAD = """
import sys, json, torch
if sys.argv[2] == "package":
    import syvla
from transformers import AutoModel, AutoProcessor
load = {"trust_remote_code": True} if sys.argv[2] == "remote" else {}
model = AutoModel.from_pretrained(sys.argv[1], **load).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], **load)
inputs = processor(images={"center": torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()}, text="lift",
                   state=torch.zeros(3).numpy(), embodiment="arm")
noise = torch.ones(1, model.config.chunk_size, 3)
actions = processor.decode_actions(model.predict_actions(**inputs, noise=noise).actions, "arm")
print(json.dumps({"module": type(model).__module__.split(".")[0], "actions": actions.tolist()}))
"""


@pytest.fixture(scope="module")
def finetuned(environment, project, tmp_path_factory):
    """Two steps of `syvla-finetune` in the project."""
    work = tmp_path_factory.mktemp("work")
    environment.run("python", "-c", PREPARE, work, cwd=project, path=["."])
    data = {"path": str(work / "robot"), "embodiment": "arm", "cameras": {"center": "observation.images.head"}}
    options = {
        "config": "training/recipes/finetune.yaml",  # of the package: the project's `training/` has none
        "model_path": work / "base",
        "robot_datasets": json.dumps(data),
        "output_dir": work / "policy",
        "multimodal_share": 0.0,
        "max_steps": 2,
        "warmup_steps": 1,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_accumulation_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment.run("syvla-finetune", *words, cwd=project, path=["."])
    return words, work / "policy"


def test_fine_tuning_runs_in_a_project_with_generic_names(finetuned):
    _, policy = finetuned
    losses = [entry["loss"] for entry in json.loads((policy / "log_history.json").read_text()) if "loss" in entry]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_a_checkpoint_loads_with_the_package_and_without(finetuned, environment, project, tmp_path):
    _, policy = finetuned
    without = BareEnvironment(tmp_path / "environment")
    with_package = environment.run("python", "-c", LOAD, policy, "package", cwd=project, path=["."])
    remote = without.run("python", "-c", LOAD, policy, "remote", cwd=tmp_path)
    found = [json.loads(result.stdout.splitlines()[-1]) for result in (with_package, remote)]
    assert [each["module"] for each in found] == ["syvla", "transformers_modules"]
    np.testing.assert_allclose(found[0]["actions"], found[1]["actions"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", ["the checkout's script", "the installed module"])
def test_accelerate_launches_it(finetuned, environment, project, tmp_path, place):
    words, _ = finetuned
    arguments = [
        *words[: words.index("--output_dir") + 1],
        str(tmp_path / "out"),
        *words[words.index("--output_dir") + 2 :],
    ]
    launch = ("python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no")
    if place == "the installed module":
        environment.run(*launch, "-m", "syvla.training.finetune", *arguments, cwd=project, path=["."])
    else:
        bare = BareEnvironment(tmp_path / "environment")
        bare.run(*launch, "training/finetune.py", *arguments, cwd=ROOT, path=[ROOT])
    assert (tmp_path / "out" / "model.safetensors").is_file()
