"""Uploads, against a stand-in for the Hub's upload endpoints that keeps what is committed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor

from syvla.modeling_syvla import SyVLAValueConfig, SyVLAValueModel
from syvla.training.hub.model_card import write_model_card
from syvla.training.hub.push_to_hub import checkpoint_problems, main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def hub():
    with HubStandIn.running() as server:
        yield server


@pytest.fixture
def run(hub, tmp_path):
    """Runs Python in a process whose Hub is the stand-in."""

    def start(*arguments, fails=False):
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "stand-in",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=300,
        )
        assert (process.returncode != 0) == fails, process.stderr[-3000:]
        return process

    return start


@pytest.fixture
def checkpoint(base_checkpoint, tmp_path):
    """The tiny checkpoint with its card and the leftovers of a training run."""
    folder = tmp_path / "tiny"
    model, processor = AutoModel.from_pretrained(base_checkpoint), AutoProcessor.from_pretrained(base_checkpoint)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_model_card(folder, model.config, processor, {"held_out_data": [["arm", [2, 3]]]})
    (folder / "checkpoint-2").mkdir()
    for name in (
        "optimizer.pt",
        "rng_state.pth",
        "training_args.bin",
        "raw_weights.safetensors",
        "checkpoint-2/a.json",
    ):
        (folder / name).write_bytes(b"0")
    return folder


def test_a_checkpoint_arrives_whole_in_one_commit_with_its_card(run, hub, checkpoint):
    out = run("-m", "syvla.training.hub.push_to_hub", checkpoint, "someone/tiny", "--private", "--message", "First")
    assert json.loads(out.stdout[out.stdout.index("{") :])["repository"] == "someone/tiny"
    repository = hub.repositories["model/someone/tiny"]
    assert repository["private"]
    assert [title for title, _ in repository["commits"]] == ["First"]
    files = repository["files"]
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= set(files)
    assert {"modeling_syvla.py", "configuration_syvla.py", "dataset_statistics.json"} <= set(files)
    assert not [
        n for n in files if n.endswith((".pt", ".pth", ".bin")) or "raw_weights" in n or n.startswith("checkpoint-")
    ]
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert b'from_pretrained("someone/tiny")' in files["README.md"]
    asked = "from syvla.evaluation.open_loop.episodes import recorded_split as split\n"
    asked += "print(split('someone/tiny', 'me/arm'), split('someone/tiny', 'me/leg'))"
    assert run("-c", asked).stdout.split("\n")[0] == "[2, 3] None", "the held-out episodes are known from the Hub"


def test_push_to_hub_of_transformers_keeps_the_card_that_is_there(run, hub, checkpoint, tmp_path):
    run("-m", "syvla.training.hub.push_to_hub", checkpoint, "someone/tiny")
    script = tmp_path / "push.py"
    script.write_text(
        "import sys, modeling_syvla, syvla.processing.processing_syvla\n"
        "from transformers import AutoModel, AutoProcessor\n"
        "AutoModel.from_pretrained(sys.argv[1]).push_to_hub('someone/tiny')\n"
        "AutoProcessor.from_pretrained(sys.argv[1]).push_to_hub('someone/tiny')\n"
    )
    before = ModelCard(hub.files("model/someone/tiny")["README.md"].decode())
    run(script, checkpoint)
    assert len(hub.repositories["model/someone/tiny"]["commits"]) >= 2
    after = ModelCard(hub.files("model/someone/tiny")["README.md"].decode())
    assert after.text.strip() == before.text.strip()
    assert set(after.data.tags) >= set(before.data.tags)


def test_a_value_model_arrives_with_its_code_and_a_card(run, hub, tmp_path):
    folder = tmp_path / "value"
    model = SyVLAValueModel(SyVLAValueConfig.tiny())
    model.save_pretrained(folder)
    run("-m", "syvla.training.hub.push_to_hub", folder, "someone/value")
    files = hub.repositories["model/someone/value"]["files"]
    assert {"README.md", "config.json", "model.safetensors", "modeling_value.py", "configuration_value.py"} <= set(
        files
    )
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "robotics"
    assert card.data.library_name == "transformers"
    assert {"syvla", "value-model"} <= set(card.data.tags)
    assert 'AutoModel.from_pretrained("someone/value")' in card.text
    assert "| tabletop | 0 | 14 dimensions |" in card.text
    count = sum(p.numel() for p in model.parameters())
    assert f"{count / 1e6:.1f} million parameters" in card.text
    own = (folder / "README.md").read_text().replace("Not stated by the run", "Told by hand")
    (folder / "README.md").write_text(own)
    run("-m", "syvla.training.hub.push_to_hub", folder, "someone/value")
    assert b"Told by hand" in hub.repositories["model/someone/value"]["files"]["README.md"], "a card is kept"


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_trainer_pushes_our_card_with_every_save(run, hub, base_checkpoint, robot_dataset_path, tmp_path, adapter):
    cameras = {"center": "observation.images.head"}
    spec = {"path": str(robot_dataset_path), "embodiment": "two_arms", "cameras": cameras}
    options = {
        "model_path": base_checkpoint,
        "robot_datasets": json.dumps(spec),
        "output_dir": tmp_path / "out",
        "multimodal_share": 0.0,
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "adapter": adapter,
        "ema_decay": 0.9,
        "use_cpu": True,
        "push_to_hub": True,
        "hub_model_id": "someone/lift",
        "hub_always_push": True,
    }
    run(
        "-m",
        "syvla.training.finetune",
        *(str(text) for name, value in options.items() for text in (f"--{name}", value)),
    )
    repository = hub.repositories["model/someone/lift"]
    titles = [title for title, _ in repository["commits"]]
    assert any(title == "Training in progress, step 1" for title in titles)
    assert titles[-1] == "Model save"
    weights = "model.safetensors" if adapter == "none" else "adapter_model.safetensors"
    for title, added in repository["commits"]:
        assert {"README.md", weights, "processor_config.json"} <= set(added), title
    assert not [name for name in repository["files"] if name.endswith((".pt", ".pth", ".bin")) or "raw_weights" in name]
    card = ModelCard(repository["files"]["README.md"].decode())
    assert "# lift\n" in card.text
    assert "- Trained steps: 2" in card.text
    loader = "from_pretrained" if adapter == "none" else "load_adapter"
    assert f'{loader}("someone/lift")' in card.text
    assert card.data.library_name == ("transformers" if adapter == "none" else "peft")


def test_a_dataset_arrives_with_its_card_and_the_tag_of_its_format(run, hub, robot_dataset_path, tmp_path):
    root = shutil.copytree(robot_dataset_path, tmp_path / "lift")  # its card gets the license
    for _ in range(2):  # the tag moves with a second upload
        arguments = ("--dataset", root, "someone/lift", "--license", "cc-by-4.0")
        run("-m", "syvla.training.hub.push_to_hub", *arguments)
    repository = hub.repositories["dataset/someone/lift"]
    local = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert {name for name in local if not name.startswith(".")} == set(repository["files"])
    assert repository["tags"] == {"v3.0": f"{len(repository['commits']):040x}"}
    card = repository["files"]["README.md"].decode()
    assert "license: cc-by-4.0" in card
    assert "- LeRobot" in card


def test_what_would_be_a_broken_repository_is_not_uploaded(run, hub, checkpoint, tmp_path, capsys):
    assert checkpoint_problems(checkpoint) == []
    (checkpoint / "README.md").unlink()
    (checkpoint / "action_expert.py").rename(checkpoint / "kept.py")
    (checkpoint / "modeling_syvla.py").unlink()
    (checkpoint / "model.safetensors").unlink()
    error = run("-m", "syvla.training.hub.push_to_hub", checkpoint, "someone/tiny", fails=True).stderr
    for message in (
        "model.safetensors is missing",
        "README.md is missing",
        "config.json names modeling_syvla.py, which is missing",
    ):
        assert message in error
    assert hub.repositories == {}
    assert main([str(tmp_path / "none"), "someone/tiny"]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main([str(tmp_path), "someone/lift", "--dataset"]) == 1
    assert "expected the folder of a LeRobot dataset" in capsys.readouterr().err


def test_shards_and_broken_metadata_are_checked(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (checkpoint / shards["a"]).write_bytes(b"0")
    (checkpoint / "README.md").write_text("---\ntags: [\n---\n")
    problems = checkpoint_problems(checkpoint)
    assert problems[0] == "model-00002-of-00002.safetensors is missing"
    assert problems[1].startswith("README.md: its metadata cannot be read")
