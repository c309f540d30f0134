"""Recipes: YAML defaults, command line on top, unknown keys refused."""

import json
from pathlib import Path

import pytest
import yaml

from syvla.training.ppo import RLDataArguments
from syvla.training.rl.config import SyVLAPPOConfig
from syvla.training.run.arguments import (
    DataArguments,
    ModelArguments,
    PretrainingDataArguments,
    SyVLAPretrainingArguments,
    SyVLATrainingArguments,
)
from syvla.training.run.recipe import parse_recipe
from syvla.training.value_warmup import ValueArguments, ValueTrainingArguments

TYPES = (ModelArguments, DataArguments, SyVLATrainingArguments)
RL_TYPES = (ModelArguments, RLDataArguments, SyVLAPPOConfig)
VALUE_TYPES = (ValueArguments, ValueTrainingArguments)
RECIPE_TYPES = {"ppo": RL_TYPES, "demo_ppo": RL_TYPES, "demo_value": VALUE_TYPES}
RECIPES = Path(__file__).parents[3] / "training" / "recipes"


def parse(tmp_path, text, *argv):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return parse_recipe(TYPES, ["--config", str(path), "--output_dir", str(tmp_path), *argv])


def test_the_command_line_wins_over_the_recipe(tmp_path):
    text = "learning_rate: 2e-5\nmax_steps: 7\nrobot_datasets:\n  - path: a\n    weight: 2\n  - b\nuse_cpu: true\n"
    _, data, args = parse(tmp_path, text, "--max_steps", "9")
    assert (args.learning_rate, args.max_steps, args.use_cpu) == (2e-5, 9, True)
    assert data.robot_specs == [{"path": "a", "weight": 2}, {"path": "b"}]
    _, data, _ = parse(tmp_path, text, "--robot_datasets", "c")
    assert data.robot_specs == [{"path": "c"}]


def test_mappings_become_json(tmp_path):
    model, _, _ = parse(tmp_path, "model_overrides:\n  decoupling_quantile: 0.1\nuse_cpu: true\n")
    assert json.loads(model.model_overrides) == {"decoupling_quantile": 0.1}


def test_a_misspelt_key_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(ValueError, match="unknown key 'learning_rates'; did you mean learning_rate"):
        parse(tmp_path, "learning_rates: 1\n")


def test_a_missing_file_and_a_list_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        parse_recipe(TYPES, ["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ValueError, match="expected a mapping"):
        parse(tmp_path, "- a\n")


def test_an_unknown_option_ends_the_program(tmp_path):
    with pytest.raises(SystemExit):
        parse(tmp_path, "use_cpu: true\n", "--learning_rat", "1", "--nonsense", "2")


def test_table_7_is_the_fine_tuning_recipe(tmp_path):
    """Paper, Table 7, column of task fine-tuning: batch 32 is 8 processes x 4."""
    recipe = RECIPES / "finetune.yaml"
    argv = ["--config", str(recipe), "--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", "true"]
    _, data, args = parse_recipe(TYPES, argv)
    assert (args.learning_rate, args.final_learning_rate, args.warmup_steps) == (3e-5, 3e-6, 1000)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.max_grad_norm) == (0.9, 0.995, 1e-8, 1.0)
    assert args.lr_scheduler_type == "cosine_with_min_lr"
    assert args.lr_scheduler_kwargs == {"min_lr_rate": pytest.approx(0.1)}
    assert args.per_device_train_batch_size * 8 == 32
    assert data.multimodal_share == 0.30


@pytest.mark.parametrize("argv", [(), ("--config", str(RECIPES / "pretrain.yaml"))], ids=["defaults", "recipe"])
def test_table_7_is_the_pretraining_recipe(argv, tmp_path):
    """Paper, Table 7 and appendix A: batch 512 on 32 processes, 35% multi-modal data; also what syvla-pretrain defaults to."""
    types = (ModelArguments, PretrainingDataArguments, SyVLAPretrainingArguments)
    _, data, args = parse_recipe(types, [*argv, "--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", "true"])
    assert (args.learning_rate, args.final_learning_rate, args.warmup_steps) == (1e-4, 1e-5, 5000)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.max_grad_norm) == (0.9, 0.999, 1e-8, 1.0)
    assert args.lr_scheduler_type == "cosine_with_min_lr"
    assert args.lr_scheduler_kwargs == {"min_lr_rate": pytest.approx(0.1)}
    assert args.per_device_train_batch_size * 32 == 512
    assert data.multimodal_share == 0.35
    if argv:
        assert len({spec["embodiment"] for spec in data.robot_specs}) == 3
        formats = {"coco_captions", "vqa_v2", "pixmo_points", "pixmo_point_explanations", "cambrian"}
        assert {spec["format"] for spec in data.multimodal_specs} == formats


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_parses(recipe, tmp_path):
    """And what it names reaches the arguments, but for what the command line overrides."""
    argv = ["--config", str(recipe), "--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", "true"]
    types = RECIPE_TYPES.get(recipe.stem, TYPES)
    parsed = {key: value for arguments in parse_recipe(types, argv) for key, value in vars(arguments).items()}
    for key, value in yaml.safe_load(recipe.read_text()).items():
        if key.endswith("_datasets"):
            value, parsed[key] = [spec["path"] for spec in value], [json.loads(entry)["path"] for entry in parsed[key]]
        if isinstance(value, dict):
            parsed[key] = json.loads(parsed[key])
        assert key in ("bf16", "use_cpu", "save_strategy") or parsed[key] == value, key


def test_the_reinforcement_learning_recipe_has_the_papers_budget(tmp_path):
    """Paper, appendix A: at most 10 RL episodes of 20 rollouts; section 3.3: expert advantage 1."""
    argv = [
        "--config",
        str(RECIPES / "ppo.yaml"),
        "--output_dir",
        str(tmp_path),
        "--bf16",
        "false",
        "--use_cpu",
        "true",
    ]
    _, _, args = parse_recipe(RL_TYPES, argv)
    assert (args.max_rl_updates, args.rollouts_per_update) == (10, 20)
    assert (args.expert_mode, args.expert_advantages, args.expert_advantage) == ("similar", "constant", 1.0)
    assert args.rollouts_per_pass == args.experts_per_pass == 8
