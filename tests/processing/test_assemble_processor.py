"""`syvla-assemble` writes a checkpoint that loads, thinks and acts; its processor is made of the parts' own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pretrained_parts import QUERY_TOKEN_ID, disk_tensors, read_json, save_vision_tower, save_vlm, write_json
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from syvla.modeling_syvla import SyVLAModel
from syvla.modeling_syvla.assemble import QUERY_TOKEN
from syvla.modeling_syvla.export_vlm import export_vlm
from syvla.processing import SyVLAProcessor
from syvla.processing.assemble_processor import assemble, assemble_processor, build_parser, main
from syvla.processing.prompt_format import QUERY_TOKEN as PROCESSORS_QUERY_TOKEN

ROOT = Path(__file__).resolve().parents[2]
EXPERT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32, "ff_multiple_of": 32}
OVERRIDES = {"expert_config": EXPERT, "num_query_tokens": 4, "chunk_size": 8}
ARM = {"arm": {"state_dim": 3, "action_dim": 2}}
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    save_vlm(root / "vlm", files=True)
    save_vision_tower(root / "siglip", files=True)
    return root


@pytest.fixture(scope="module")
def assembled(parts):
    assemble(parts / "vlm", parts / "siglip", parts / "syvla", embodiments=ARM, config_overrides=OVERRIDES)
    return parts / "syvla"


@pytest.fixture
def broken(parts, tmp_path):
    for name in ("vlm", "siglip"):
        shutil.copytree(parts / name, tmp_path / name)
    return tmp_path


def with_robot(processor):
    statistics = {"state": {"mean": np.zeros(3), "std": np.ones(3)}, "action": {"mean": np.zeros(2), "std": np.ones(2)}}
    processor.set_embodiment("arm", statistics)
    return processor


def arguments(parts, output, *more):
    sizes = ["--set", f"expert_config={json.dumps(EXPERT)}", "--set", "num_query_tokens=4", "--set", "chunk_size=8"]
    where = ["--vlm", str(parts / "vlm"), "--vision-tower", str(parts / "siglip"), "--output", str(output)]
    return [*where, "--embodiment", "arm:3:2", *sizes, *more]


# ---------------------------------------------------------------------- the processor


def test_checkpoint_loads_and_acts_with_and_without_thinking(assembled):
    model = SyVLAModel.from_pretrained(assembled)
    processor = with_robot(AutoProcessor.from_pretrained(assembled))
    assert isinstance(processor, SyVLAProcessor)
    assert not processor.disagreements(model.config)
    inputs = processor(images={"center": IMAGE}, text="lift the red cube", state=[0.1, 0.2, 0.3])
    actions = model.predict_actions(**inputs).actions
    assert processor.decode_actions(actions, "arm").shape == (1, 8, 2)
    thought = model.predict_actions(**inputs, think=True, max_new_tokens=4)
    assert len(thought.thoughts) == 1
    assert thought.actions.isfinite().all()
    batch = processor(
        images={"center": IMAGE}, text="lift", state=np.zeros(3), actions=np.zeros((8, 2)), thought="reach"
    )
    assert model(**batch).loss.isfinite()


def test_tokenizer_is_the_vlms_with_the_query_token(parts, assembled):
    own, source = AutoTokenizer.from_pretrained(assembled), AutoTokenizer.from_pretrained(parts / "vlm")
    assert QUERY_TOKEN == PROCESSORS_QUERY_TOKEN
    assert own.convert_tokens_to_ids(QUERY_TOKEN) == QUERY_TOKEN_ID == len(source)
    assert {**source.get_vocab(), QUERY_TOKEN: QUERY_TOKEN_ID} == own.get_vocab()
    text = "Lift the red cube, ünïcode <|im_end|>"
    assert own(text)["input_ids"] == source(text)["input_ids"]


def test_image_processors_are_the_parts(parts, assembled):
    processor = AutoProcessor.from_pretrained(assembled)
    source = AutoImageProcessor.from_pretrained(parts / "vlm")
    for key in ("pixel_values", "image_grid_thw"):
        expected = source(images=[IMAGE], return_tensors="pt")[key]
        assert torch.equal(processor.image_processor(images=[IMAGE], return_tensors="pt")[key], expected)
    pixels = processor.expert_image_processor(images=[IMAGE], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32), "the encoder's size, not the 224 of its image processor"
    theirs = AutoImageProcessor.from_pretrained(parts / "siglip", size={"height": 32, "width": 32})
    assert torch.equal(pixels, theirs(images=[IMAGE], return_tensors="pt")["pixel_values"])


def test_processor_alone_from_a_checkpoint_folder(parts, assembled, tmp_path):
    processor = assemble_processor(parts / "vlm", parts / "siglip", assembled, output=tmp_path)
    assert processor.chunk_size == 8
    for name in ("processor_config.json", "tokenizer.json"):
        assert read_json(tmp_path / name) == read_json(assembled / name)


def test_exported_vlm_carries_tokenizer_and_image_processor(assembled, tmp_path):
    export_vlm(assembled, tmp_path / "vlm")
    own = AutoProcessor.from_pretrained(assembled)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "vlm")
    text = "What is <|vision_start|><|image_pad|><|vision_end|> this?"
    assert tokenizer(text)["input_ids"] == own.tokenizer(text)["input_ids"]
    images = AutoImageProcessor.from_pretrained(tmp_path / "vlm")
    expected = own.image_processor(images=[IMAGE], return_tensors="pt")["pixel_values"]
    assert torch.equal(images(images=[IMAGE], return_tensors="pt")["pixel_values"], expected)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == own.apply_chat_template(chat, tokenize=False)
    preprocessor = read_json(tmp_path / "vlm" / "preprocessor_config.json")
    assert preprocessor["image_processor_type"] == "Qwen2VLImageProcessor"
    assert preprocessor["processor_class"] == "Qwen2_5_VLProcessor"
    assert read_json(tmp_path / "vlm" / "tokenizer_config.json")["processor_class"] == "Qwen2_5_VLProcessor"
    for path in (tmp_path / "vlm").glob("*.json"):
        assert "SyVLA" not in path.read_text(), path.name


# ---------------------------------------------------------------------- errors


def edit(path, **fields):
    write_json(path, {**read_json(path), **fields})


DAMAGE = {
    "no image processor": (lambda r: (r / "vlm" / "preprocessor_config.json").unlink(), "vlm: .*no image processor"),
    "no expert's": (
        lambda r: (r / "siglip" / "preprocessor_config.json").unlink(),
        "vision_tower: .*no image processor",
    ),
    "patch": (
        lambda r: edit(r / "vlm" / "preprocessor_config.json", patch_size=14),
        "patch_size: the image processor has 14, the model 8",
    ),
    "not square": (
        lambda r: edit(r / "siglip" / "preprocessor_config.json", size={"shortest_edge": 32}),
        "expected an image processor that makes square images",
    ),
    "image token": (
        lambda r: edit(r / "vlm" / "config.json", image_token_id=400),
        "image token: the tokenizer has id 486, the model 400",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_part_that_does_not_fit_is_found_before_anything_is_written(broken, damage, message):
    damage(broken)
    with pytest.raises(ValueError, match=message):
        assemble(broken / "vlm", broken / "siglip", broken / "out", config_overrides=OVERRIDES)
    assert sorted(path.name for path in broken.iterdir()) == ["siglip", "vlm"]


# ---------------------------------------------------------------------- the command


def test_command_writes_what_the_function_writes(parts, assembled, tmp_path, capsys):
    assert main(arguments(parts, tmp_path / "out")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == read_json(tmp_path / "out" / "assembly.json") == read_json(assembled / "assembly.json")
    for path in assembled.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_command_reports_errors_and_fails(parts, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert main(arguments(parts, tmp_path)) == 1
    assert "syvla-assemble: output: " in capsys.readouterr().err
    assert main(["--vlm", "/none", "--vision-tower", "/none", "--output", str(tmp_path / "out")]) == 1
    assert "vlm: /none: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--embodiment", "arm:3"], "expected NAME:STATE_DIM:ACTION_DIM"),
        (["--embodiment", ":3:2"], "expected NAME:STATE_DIM:ACTION_DIM"),
        (["--set", "chunk_size"], "expected FIELD=JSON"),
        (["--set", "chunk_size=many"], "expected FIELD=JSON"),
    ],
)
def test_command_explains_bad_arguments(parts, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments(parts, tmp_path / "out", *more))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_the_defaults():
    text = " ".join(build_parser().format_help().split())
    for default in ("(default: 0)", "(default: auto)", "(default: 5GB)"):
        assert default in text


def test_module_command_reads_parts_from_the_hub_cache(parts, assembled, tmp_path):
    """`python -m syvla.modeling_syvla.assemble` on Hub ids, a named revision and no network: the cache's own folder layout."""
    for repository, source in (("org/Tiny-VL", "vlm"), ("org/siglip", "siglip")):
        cached = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(parts / source, cached / "snapshots" / ("a" * 40))
        (cached / "refs").mkdir()
        for revision in ("main", "v1.0"):
            (cached / "refs" / revision).write_text("a" * 40)
        (cached / "snapshots" / ("a" * 40) / "pytorch_model.bin").write_bytes(b"never read")
    command = arguments(parts, tmp_path / "out", "--vlm-revision", "v1.0")
    command[command.index(str(parts / "vlm"))] = "org/Tiny-VL"
    command[command.index(str(parts / "siglip"))] = "org/siglip"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "syvla.modeling_syvla.assemble", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout[done.stdout.index("{") :])  # an installed DeepSpeed speaks first
    assert report["vlm"] == {"origin": "org/Tiny-VL", "revision": "a" * 40}
    assert report["vision_tower"] == {"origin": "org/siglip", "revision": "a" * 40}
    own, expected = disk_tensors(tmp_path / "out"), disk_tensors(assembled)
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in own)
    assert (tmp_path / "out" / "processor_config.json").read_bytes() == (
        assembled / "processor_config.json"
    ).read_bytes()
