"""The files for `accelerate launch`: accelerate reads them, one node and several differ in their machines alone."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from syvla.training.cpu_engines import CONFIGS, ENGINES

MACHINES = {"num_machines", "num_processes", "machine_rank", "main_process_ip", "main_process_port", "rdzv_backend"}
MACHINES |= {"same_network"}


def read(name):
    return vars(load_config_from_file(str(CONFIGS / f"{name}.yaml")))


@pytest.mark.parametrize("engine", ENGINES)
def test_several_nodes_differ_from_one_in_their_machines_alone(engine):
    one, several = read(engine), read(f"{engine}_multinode")
    assert (one["num_machines"], one["num_processes"]) == (1, 8)
    assert (several["num_machines"], several["num_processes"], several["machine_rank"]) == (4, 32, 0)
    assert several["main_process_ip"]
    one["deepspeed_config"]["deepspeed_multinode_launcher"] = "standard"
    several["deepspeed_config"].setdefault("deepspeed_multinode_launcher", "standard")
    assert {k: v for k, v in one.items() if k not in MACHINES} == {
        k: v for k, v in several.items() if k not in MACHINES
    }


def test_every_file_belongs_to_an_engine():
    assert {Path(path).stem.removesuffix("_multinode") for path in CONFIGS.glob("*.yaml")} == set(ENGINES)


@pytest.mark.parametrize("overrides", [{}, {"action_head": "l1_regression"}], ids=["flow", "regression"])
def test_fsdp_finds_every_class_that_it_is_to_shard(overrides, make_model):
    """accelerate refuses a class that the model lacks; all transformer layers are among them."""
    model = make_model(**overrides)
    present = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= present
    layers = {name for name in present if name.endswith(("DecoderLayer", "VisionBlock", "EncoderLayer", "ExpertLayer"))}
    assert set(model._no_split_modules) == layers
