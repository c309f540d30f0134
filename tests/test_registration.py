"""The classes are known to transformers in whatever order things are imported, and what needs no torch imports none."""

import subprocess
import sys

import pytest

CHECK = """
from transformers import AutoConfig, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
names = [type(AutoConfig.for_model(name)).__name__ for name in ("syvla", "syvla_expert", "syvla_value")]
config, value = type(AutoConfig.for_model("syvla")), type(AutoConfig.for_model("syvla_value"))
found = MODEL_MAPPING[config], MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config], PROCESSOR_MAPPING[config], MODEL_MAPPING[value]
print(*names, *(c.__name__ for c in found), *sorted({c.__module__.split(".")[0] for c in (config, *found)}))
"""
REGISTERED = [
    *("SyVLAConfig", "SyVLAExpertConfig", "SyVLAValueConfig"),
    *("SyVLAModel", "SyVLAForConditionalGeneration", "SyVLAProcessor", "SyVLAValueModel"),
    "syvla",
]
ORDERS = {
    "syvla first": "import syvla, transformers",
    "transformers first": "import transformers, syvla",
    "a name of transformers before": "from transformers import AutoConfig\nimport syvla",
    "the processor's file first": "import syvla.processing.processing_syvla",
    "the config's file first": "import syvla.modeling_syvla.configuration_syvla",
    "a public name first": "from syvla import SyVLAProcessor",
    "a room first": "import syvla.training.rl.losses",
    "in another thread": """
import threading, syvla
thread = threading.Thread(target=__import__, args=("transformers",)); thread.start(); thread.join()
""",
}


def run(code: str) -> list[str]:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_the_classes_are_registered_in_every_order(order):
    assert run(ORDERS[order] + "\n" + CHECK) == REGISTERED


@pytest.mark.slow
def test_two_threads_that_import_at_once_do_not_wait_for_each_other():
    """One holds the package's lock and waits for transformers, the other holds transformers' and registers the package.

    That the first may fail is transformers' own: its module replaces itself while it is imported.
    """
    code = """
import sys, threading, time, syvla
faults = []
def load(name):
    try:
        __import__(name)
    except Exception as error:
        faults.append((name, repr(error)))
threads = [threading.Thread(target=load, args=(name,)) for name in ("transformers", "syvla.modeling_syvla")]
for thread in threads:
    thread.start()
    while "transformers" not in sys.modules: time.sleep(0.001)
for thread in threads:
    thread.join()
assert not [fault for fault in faults if fault[0] == "transformers" or "from 'transformers'" not in fault[1]], faults
import syvla.modeling_syvla, syvla.processing
"""
    assert run(code + CHECK) == REGISTERED


@pytest.mark.parametrize(
    "modules",
    [
        ["syvla"],
        ["syvla.serving.client.policy_client", "syvla.serving.client.rl_client", "syvla.serving.client.chunk_executor"],
        ["syvla.evaluation.environments", "syvla.evaluation.environments.simulator"],
        ["syvla.evaluation.remote_policy", "syvla.evaluation.simulated_robot"],
    ],
)
def test_robot_clients_and_simulators_import_neither_torch_nor_transformers(modules):
    code = f"import sys, {', '.join(modules)}\nprint(*({{'torch', 'transformers', 'scipy'}} & set(sys.modules)))"
    assert run(code) == []


def test_importing_the_package_alone_is_lighter_than_transformers():
    ours = run("import sys, syvla\nprint(*sys.modules)")
    theirs = run("import sys, transformers\nprint(*sys.modules)")
    assert len(ours) < len(theirs)


def test_transformers_without_torch_can_be_imported_beside_a_client():
    """As on a robot's computer that has transformers for a tokenizer; torch is hidden from the import system."""
    code = """
import importlib.util, sys
from importlib.abc import MetaPathFinder
class Nothing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == "torch" else real(name, package)
sys.meta_path.insert(0, Nothing())
import syvla, transformers
print("torch" in sys.modules, "syvla.modeling_syvla" in sys.modules, transformers.AutoConfig.__name__)
"""
    assert run(code) == ["False", "False", "AutoConfig"]


@pytest.mark.slow
def test_public_names_are_what_their_packages_export():
    """Each is found, is listed, and is the same object as in its package, also when its module has been imported."""
    code = """
import importlib, syvla
import syvla.evaluation, syvla.processing, syvla.serving, syvla.training
for package in (syvla.evaluation, syvla.processing, syvla.serving, syvla.training):
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name), name
for name in syvla.__all__:
    assert name in dir(syvla), name
    value = getattr(syvla, name)
    if name in syvla._PUBLIC_NAMES:
        assert value is getattr(importlib.import_module(f"syvla.{syvla._PUBLIC_NAMES[name]}"), name), name
try:
    syvla.NoSuchName
except AttributeError as error:
    print(error)
"""
    assert " ".join(run(code)) == "module 'syvla' has no attribute 'NoSuchName'"
