"""`syvla-rl`: the commands of server, robots and trainer belong together. `test_paper_tables.py` has a whole run."""

import json

import pytest

from syvla.evaluation.simulated_robot import build_parser as robot_parser
from syvla.serving.serve_command import build_parser as serve_parser
from syvla.training.rl_run import SEEDS_PER_ROBOT, free_port, main, parse_run

TRAINER = ["--model_path", "policy", "--value_model_path", "value", "--robot_datasets", "demonstrations"]


def of(parser, command, module):
    assert command[1:3] == ["-m", module]
    return parser.parse_args(command[3:])


def test_server_robots_and_trainer_get_the_same_run(tmp_path):
    from syvla.training.ppo import RLDataArguments
    from syvla.training.rl.config import SyVLAPPOConfig
    from syvla.training.run.arguments import ModelArguments
    from syvla.training.run.recipe import parse_recipe

    robot = ["--task", "place", "--env-option", "max_steps=9", "--robots", "2", "--replan-steps", "4", "--think"]
    run = parse_run([*robot, *TRAINER, "--rollouts_per_update", "6", "--seed", "3", "--output_dir", str(tmp_path)])
    server = of(serve_parser(), run.server_command(8765), "syvla.serving.serve_command")
    assert (server.rl_run, server.port, server.think) == (tmp_path, 8765, "on")
    assert (server.rl_rollouts, server.rl_updates) == (6, SyVLAPPOConfig.max_rl_updates)
    first, second = (
        of(robot_parser(), run.robot_command(number, "http://x:1"), "syvla.evaluation.simulated_robot")
        for number in (0, 1)
    )
    assert (first.task, first.env_option, first.replan_steps, first.think) == ("place", [("max_steps", 9)], 4, True)
    assert abs(first.seed - second.seed) == SEEDS_PER_ROBOT
    command = run.trainer_command()
    assert command[1:3] == ["-m", "syvla.training.ppo"]
    model, data, args = parse_recipe(
        (ModelArguments, RLDataArguments, SyVLAPPOConfig), [*command[3:], "--use_cpu", "true"]
    )
    assert (model.model_path, data.decision_steps) == ("policy", 4), "experts decide as often as the robot"
    assert (args.output_dir, args.rollouts_per_update, args.seed) == (str(tmp_path), 6, 3)


def test_a_robot_that_is_started_again_takes_other_starts(tmp_path):
    run = parse_run([*TRAINER, "--output_dir", str(tmp_path)])
    seed = of(robot_parser(), run.robot_command(0, "http://x:1"), "syvla.evaluation.simulated_robot").seed
    lines = [{"time": 0.0, "event": event, "episode_id": "a"} for event in ("begin", "end", "reward", "begin", "abort")]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert of(robot_parser(), run.robot_command(0, "http://x:1"), "syvla.evaluation.simulated_robot").seed == seed + 2


def test_recipes_and_engines_that_come_with_the_package_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config", "training/recipes/tables/tiny_rl.yaml", "--max_rl_updates", "2", "--output_dir", "rl"]
    run = parse_run([*TRAINER, *words, "--accelerate-config", "training/accelerate_configs/zero2.yaml"])
    assert (run.updates, run.rollouts) == (2, 20)
    command = run.trainer_command()
    assert command[1:4] == ["-m", "accelerate.commands.launch", "--config_file"]
    assert run.accelerate_config.is_file()
    assert command[5].endswith("training/ppo.py")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "output_dir: expected the folder of the run"),
        (["--output_dir", "x", "--robots", "0"], "robots: expected at least 1, got 0"),
        (["--output_dir", "x", "--config", "no.yaml"], "no.yaml is not a file"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([*TRAINER, *words]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_options_that_nobody_knows_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--output_dir", "x", "--rolouts", "3"])
    assert "unrecognized arguments: --rolouts 3" in capsys.readouterr().err


def test_a_free_port_is_free():
    assert 1024 <= free_port() < 65536
