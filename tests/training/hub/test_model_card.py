"""The card of a checkpoint: valid metadata, facts of the run, measured results only."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from transformers import AutoModel, AutoProcessor

from syvla.modeling_syvla import SyVLAConfig
from syvla.training.hub.evaluation_results import results_table
from syvla.training.hub.model_card import STATISTICS_FILE, add_results, main, write_model_card
from syvla.training.hub.run_description import UNKNOWN, dataset_license, hub_id

SUMMARY = {
    "tasks": {"lift": {"successes": 28, "episodes": 40, "success_rate": 0.7, "interval": [0.5457, 0.8193]}},
    "seeds": [1000000, 1000001],
    "settings": {"env": "tabletop", "policy": "syvla", "replan_steps": 4, "think": True, "num_steps": 10},
}
RUN = {
    "step": 100,
    "world_size": 2,
    "final": {"loss": 0.5},
    "arguments": {"learning_rate": 3e-5, "seed": 0, "weight_decay": 0.0},
    "multimodal_share": 0.3,
    "base_model": "someone/base",
    "datasets": [
        {
            "name": "someone/lift",
            "id": "someone/lift",
            "license": "cc-by-4.0",
            "kind": "robot",
            "samples": 36,
            "episodes": 3,
            "thoughts": True,
            "embodiment": "tabletop",
            "cameras": {"center": "observation.images.head"},
        },
        {"name": "chats.jsonl", "id": None, "license": UNKNOWN, "kind": "multi-modal", "samples": 8},
    ],
}


@pytest.fixture
def write(tmp_path, tiny_processor):
    def make(config=None, **changes):
        return write_model_card(tmp_path, config or SyVLAConfig.tiny(), tiny_processor, {**RUN, **changes})

    return make


@pytest.fixture
def summary_path(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY))
    return path


@pytest.mark.parametrize("changes", [{}, {"adapter": {"kind": "dora", "scope": "vlm", "rank": 8, "alpha": 16}}])
@pytest.mark.parametrize("evaluations", [[], [SUMMARY]])
def test_metadata_survives_the_hubs_own_parser(write, changes, evaluations):
    """huggingface_hub reads the file, rebuilds the metadata and would write the same again."""
    path = write(evaluations=evaluations, **changes)
    metadata = metadata_load(path)
    data = ModelCardData(**metadata)
    assert yaml.safe_load(data.to_yaml()) == metadata
    assert ModelCard.load(path).data.to_dict() == data.to_dict()
    assert metadata["library_name"] == ("peft" if changes else "transformers")
    assert metadata["pipeline_tag"] == "robotics"
    assert {"robotics", "vision-language-action", "vla", "syvla"} <= set(metadata["tags"])
    assert ("dora" if changes else "custom_code") in metadata["tags"]
    assert metadata["base_model"] == "someone/base"
    assert metadata["base_model_relation"] == ("adapter" if changes else "finetune")
    assert metadata["datasets"] == ["someone/lift"]
    assert ("model-index" in metadata) == bool(evaluations)
    assert all(isinstance(value, (str, list)) for value in metadata.values())


def test_weights_of_qwen_3b_carry_its_license(write):
    data = metadata_load(write(config=SyVLAConfig(embodiments={})))
    assert (data["license"], data["license_name"]) == ("other", "qwen-research")
    assert data["license_link"].startswith("https://huggingface.co/Qwen/")
    assert metadata_load(write())["license"] == "apache-2.0"


def test_card_states_data_robots_recipe_and_citation(write, tiny_processor):
    tiny_processor.embodiments["arm"]["action_names"] = ["reach_m", "turn_rad"]
    text = write().read_text()
    assert "| someone/lift | robot | 36 | 3 | tabletop | yes | cc-by-4.0 |" in text
    assert "| chats.jsonl | multi-modal | 8 |  |  |  | unknown |" in text
    assert "| tabletop | 14 dimensions, mean_std | 14 dimensions, mean_std | not given | center: observation" in text
    mean = tiny_processor.embodiments["arm"]["statistics"]["action"]["mean"][1]
    assert f"| action: turn_rad | {mean:.4g} |" in text
    assert "- Trained steps: 100, on 2 processes" in text
    assert "- peak learning rate: 3e-05" in text
    assert "weight decay" not in text
    assert "2606.09009" in text
    assert "Ye, Nanyang" in text
    assert "Not evaluated: no success rate is claimed." in text
    for heading in ("Use", "Intended use", "Robots", "Training", "Results", "Limits and safety", "License", "Citation"):
        assert f"\n## {heading}\n" in text
    assert not re.search(r"\{[{%]|[%}]\}\s", text), "nothing of the template is left"


def test_the_cards_snippet_runs(write, make_model, tiny_processor, make_item):
    """With only the loading replaced, so that the names of views, embodiment and methods are right."""
    text = write(config=make_model().config).read_text()
    snippet = re.search(r"## Use\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    lines = [line for line in snippet.splitlines() if not line.startswith(("import", "from", "model =", "processor ="))]
    item, model = make_item(), make_model()
    model.tokenizer = tiny_processor.tokenizer
    names = {"model": model, "processor": tiny_processor, "state": item["state"]}
    names |= {f"image_{i + 1}": image for i, image in enumerate(item["images"].values())}
    exec("\n".join(lines), names)
    assert names["actions"].shape == (1, 8, 14)


def test_statistics_are_readable_beside_the_card(write, tmp_path, tiny_processor):
    write()
    statistics = json.loads((tmp_path / STATISTICS_FILE).read_text())
    assert set(statistics) == {"tabletop", "arm"}
    stored = tiny_processor.embodiments["arm"]
    assert statistics["arm"]["action"]["mean"] == stored["statistics"]["action"]["mean"]
    assert statistics["arm"]["state"]["normalization"] == "mean_std"


def test_measured_results_become_model_index_and_table(write, summary_path, tmp_path):
    write()
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("## Intended use\n", "## Intended use\n\nWritten by hand.\n"))
    assert main([str(tmp_path), str(summary_path)]) == 0
    (result,) = ModelCard.load(path).data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == ("success_rate", 0.7, "robotics")
    assert result.dataset_args["episodes"] == 40
    text = path.read_text()
    assert "| tabletop | lift | 70.0% | 54.6% to 81.9% | 40 | 1000000 | yes |" in text
    assert "Not evaluated" not in text
    assert "Written by hand." in text
    assert text.index("## Results") < text.index("| tabletop | lift |") < text.index("## Limits and safety")


def test_results_of_a_task_replace_its_older_ones_and_join_others(write, summary_path, tmp_path):
    write(evaluations=[SUMMARY])
    again = json.loads(json.dumps(SUMMARY))
    again["tasks"] = {
        "lift": {"successes": 30, "episodes": 40, "interval": [0.6, 0.86]},
        "stack": {"successes": 0, "episodes": 40, "interval": [0.0, 0.0876]},
    }
    summary_path.write_text(json.dumps(again))
    add_results(tmp_path, summary_path)
    add_results(tmp_path, summary_path)
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert {r.dataset_config: r.metric_value for r in results} == {"lift": 0.75, "stack": 0.0}
    text = (tmp_path / "README.md").read_text()
    assert text.count("| tabletop | lift |") == text.count("| tabletop | stack |") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"env": "tabletop", "policy": "expert"}}, "got those of the policy 'expert'"),
        ({"tasks": {}}, "expected the summary.json of syvla-eval"),
        ({"tasks": {"lift": {"successes": 0, "episodes": 0, "interval": [0, 1]}}}, "at least one episode"),
        ({"tasks": {"lift": {"successes": 5, "episodes": 4, "interval": [0, 1]}}}, "at least one episode"),
    ],
)
def test_what_was_not_measured_is_refused(write, summary_path, tmp_path, change, message, capsys):
    before = write().read_text()
    summary_path.write_text(json.dumps({**SUMMARY, **change}))
    assert main([str(tmp_path), str(summary_path)]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == before


def test_missing_and_broken_files_are_named(write, tmp_path, summary_path, capsys):
    assert main([str(tmp_path / "nowhere"), str(summary_path)]) == 1
    assert "no such model card" in capsys.readouterr().err
    write()
    summary_path.write_text("{")
    assert main([str(tmp_path), str(summary_path)]) == 1
    assert "summary.json cannot be read" in capsys.readouterr().err


def test_no_result_no_claim():
    assert results_table([]) == "Not evaluated: no success rate is claimed."


def test_license_comes_from_the_datasets_own_card(tmp_path):
    card = tmp_path / "README.md"
    assert dataset_license(tmp_path) == UNKNOWN
    for text, license in (
        ("license: cc-by-4.0", "cc-by-4.0"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license: other\nlicense_name: robot-terms", "robot-terms"),
        ("tags: [LeRobot]", UNKNOWN),
        ("license: [", UNKNOWN),
    ):
        card.write_text(f"---\n{text}\n---\n")
        assert dataset_license(tmp_path) == license


def test_only_names_on_the_hub_count_as_hub_ids(tmp_path, monkeypatch):
    assert hub_id("someone/lift") == "someone/lift"
    assert hub_id(tmp_path) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "lift").mkdir(parents=True)
    assert hub_id("data/lift") is None


def test_saved_checkpoint_has_a_valid_true_card(finetune, tmp_path, robot_dataset_path):
    folder = tmp_path / "my_policy"
    assert finetune(folder, freeze="vlm", ema_decay=0.9) == 0
    metadata = metadata_load(folder / "README.md")
    assert yaml.safe_load(ModelCardData(**metadata).to_yaml()) == metadata
    assert "datasets" not in metadata, "a local folder is no dataset of the Hub"
    text = (folder / "README.md").read_text()
    assert "# my_policy\n" in text
    assert "| robot | robot | 36 | 3 | two_arms | yes | unknown |" in text
    assert "10 Hz | center: observation.images.head, left_wrist: observation.images.left_wrist |" in text
    assert "- frozen: vlm\n" in text
    assert "- decay of the weight average: 0.9\n" in text
    assert "Not evaluated" in text
    assert str(robot_dataset_path.parent) not in text, "paths of this machine say nothing to readers"
    statistics = json.loads((folder / STATISTICS_FILE).read_text())["two_arms"]
    processor = AutoProcessor.from_pretrained(folder)
    assert statistics["action"]["q99"] == processor.embodiments["two_arms"]["statistics"]["action"]["q99"]
    assert statistics["action"]["names"][0] == "joint_0"
    assert AutoModel.from_pretrained(folder).config.embodiments["two_arms"]["action_dim"] == 14
