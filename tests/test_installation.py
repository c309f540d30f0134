"""Where SyVLA is missing, hidden or another one, one sentence says so and what to type."""

import os
import sys
from pathlib import Path

import pytest
from bare_environment import BareEnvironment

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    path.name for path in (ROOT / "training").glob("*.py") if path.name not in ("__init__.py", "checkout.py")
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The running Python's libraries without SyVLA."""
    return BareEnvironment(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory):
    """Nothing but Python."""
    return BareEnvironment(tmp_path_factory.mktemp("empty"), libraries=False)


def clone(folder: Path) -> Path:
    """What `git clone` makes of this checkout, by links."""
    folder.mkdir(parents=True)
    for entry in ("syvla", "__init__.py", "pyproject.toml", "training", "evaluation", "serving", "processing"):
        (folder / entry).symlink_to(ROOT / entry)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_that_the_checkout_is_not_installed(environment, tmp_path, script):
    result = environment.run("python", ROOT / "training" / script, "--help", cwd=tmp_path, fails=True)
    (sentence,) = result.stderr.splitlines()
    assert f"{script}: SyVLA is not installed for this Python; type: " in sentence
    assert sentence.endswith(f"{environment.python} -m pip install -e '{ROOT}[train]'")


@pytest.mark.parametrize("shadow", ["syvla.py", "syvla/__init__.py", "syvla/notes.txt"])
def test_a_script_names_what_hides_the_package(environment, tmp_path, shadow):
    (tmp_path / shadow).parent.mkdir(exist_ok=True)
    (tmp_path / shadow).write_text("")
    command = ("python", ROOT / "training" / "finetune.py", "--help")
    (sentence,) = environment.run(*command, cwd=tmp_path, path=["."], fails=True).stderr.splitlines()
    hiding = tmp_path / "syvla" if shadow.endswith(".txt") else tmp_path / shadow
    assert f"finetune.py: `syvla` is {hiding} here, which hides the package of that name; rename it" in sentence


def test_a_script_refuses_the_package_of_another_checkout(environment, tmp_path):
    """The script would run with the other one's code, which nobody asked for."""
    other = tmp_path / "other"
    (other / "syvla").mkdir(parents=True)
    for name in ("__init__.py", "durable_files.py"):
        (other / "syvla" / name).write_text("raise SystemExit('was imported')\n")
    command = ("python", ROOT / "training" / "ppo.py", "--help")
    (sentence,) = environment.run(*command, cwd=tmp_path, path=[other], fails=True).stderr.splitlines()
    assert f"the installed SyVLA is {other / 'syvla'} and not this checkout; type: " in sentence
    assert f"-m pip install -e '{ROOT}[train]'" in sentence
    assert sentence.endswith("-m syvla.training.ppo)")


@pytest.mark.slow
def test_a_script_runs_with_the_package_of_its_checkout(environment, tmp_path):
    result = environment.run("python", ROOT / "training" / "finetune.py", "--help", cwd=tmp_path, path=[ROOT])
    assert "--robot_datasets" in result.stdout


def test_a_script_takes_its_folder_off_the_module_path(environment, tmp_path):
    """`hub`, `run` or `demo` may be names of a user's or a library's modules."""
    folder = ROOT / "training"
    code = f"""
import sys; sys.path.insert(0, {str(folder)!r})
from checkout import require_package; require_package({str(folder / "ppo.py")!r})
from importlib.util import find_spec; print(find_spec("hub"), find_spec("syvla.training.hub") is not None)
"""
    assert environment.run("python", "-c", code, cwd=tmp_path, path=[ROOT]).stdout.split() == ["None", "True"]


@pytest.mark.parametrize("module", ["training.demo", "training.finetune", "training.ppo", "serving.serve_command"])
def test_a_checkout_without_its_libraries_says_what_to_type(empty_environment, module):
    result = empty_environment.run("python", "-m", f"syvla.{module}", cwd=ROOT, fails=True)
    sentence = result.stderr.splitlines()[-1]
    assert "SyVLA needs wrapt, which this Python does not have; type: " in sentence
    assert f"{empty_environment.python} -m pip install -e '{ROOT}[train]'" in sentence


def test_training_without_torch_says_what_to_type(empty_environment, tmp_path):
    """wrapt alone is there, as beside a light client."""
    (tmp_path / "wrapt.py").write_text("def register_post_import_hook(hook, name): pass\n")
    result = empty_environment.run("python", "-m", "syvla.training.demo", cwd=ROOT, path=[tmp_path], fails=True)
    assert "SyVLA needs torch, transformers, which this Python does not have; type: " in result.stderr.splitlines()[-1]


def test_scripts_without_libraries_say_what_to_type(empty_environment, tmp_path):
    command = ("python", ROOT / "training" / "finetune.py", "--help")
    (sentence,) = empty_environment.run(*command, cwd=tmp_path, path=[ROOT], fails=True).stderr.splitlines()
    assert "torch, transformers, wrapt, accelerate, pandas, pyarrow cannot be imported; type: " in sentence


def test_tests_without_libraries_say_what_to_type(empty_environment, tmp_path):
    """pytest alone is there; a real one, from the running Python, with what it needs."""
    import importlib.metadata

    for name in ("pytest", "pluggy", "iniconfig", "packaging", "pygments", "pytest-timeout"):
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            if top != ".." and not (tmp_path / top).exists() and Path(file.locate()).exists():
                (tmp_path / top).symlink_to(Path(importlib.metadata.distribution(name).locate_file(top)))
    command = ("python", "-m", "pytest", "-p", "no:cacheprovider", "tests/test_house.py")
    result = empty_environment.run(*command, cwd=ROOT, path=[tmp_path], fails=True)
    assert result.stderr.strip() == (
        f"tests: numpy is missing; type: {empty_environment.python} -m pip install -e '{ROOT}[test]'"
    )


def test_a_clone_named_like_the_package_is_the_package(environment, tmp_path):
    """`git clone .../syvla`, and Python started beside it: the clone's folder comes before what is installed."""
    inside = clone(tmp_path / "syvla")
    code = """
import sys, syvla, syvla.serving.client.retries
print(syvla.__version__, syvla.__file__)
print(syvla.serving.client.retries.__file__)
from syvla import PolicyClient
assert sys.modules["syvla"] is syvla
"""
    version, file = environment.run("python", "-c", code, cwd=tmp_path).stdout.splitlines()[:2]
    assert version.endswith(str(inside / "syvla" / "__init__.py"))
    assert file == str(inside / "syvla" / "serving" / "client" / "retries.py")
    result = environment.run("python", "-m", "syvla.serving.serve_command", "--help", cwd=tmp_path)
    assert "usage: syvla-serve" in result.stdout


def test_the_clone_is_not_the_package_under_another_name(environment, tmp_path):
    clone(tmp_path / "robots")
    code = "import sys, robots; print('syvla' in sys.modules, hasattr(robots, '__version__'))"
    assert environment.run("python", "-c", code, cwd=tmp_path).stdout.split() == ["False", "False"]


def test_a_checkout_whose_links_were_not_made_is_the_package(environment, tmp_path):
    """As git leaves it on Windows: files that hold the text of the link."""
    checkout = tmp_path / "checkout"
    (checkout / "syvla").mkdir(parents=True)
    for path in (ROOT / "syvla").iterdir():
        if path.is_symlink():
            (checkout / path.name).symlink_to(ROOT / path.name)
            (checkout / "syvla" / path.name).write_text(os.readlink(path))
        elif path.suffix == ".py":
            (checkout / "syvla" / path.name).write_text(path.read_text())
    code = "import syvla.serving.client.retries as retries; from syvla import PolicyClient; print(retries.__file__)"
    assert environment.run("python", "-c", code, cwd=checkout).stdout.strip() == str(
        checkout / "serving" / "client" / "retries.py"
    )


def test_top_level_packages_of_an_old_installation_do_not_matter(environment, tmp_path):
    for name in ("training", "processing", "serving", "evaluation", "modeling_syvla"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('an old package was imported')\n")
    code = "import syvla.training, syvla.processing, syvla.serving, syvla.evaluation; print(syvla.training.__file__)"
    found = environment.run("python", "-c", code, cwd=tmp_path, path=[tmp_path, ROOT]).stdout.strip()
    assert found == str(ROOT / "syvla" / "training" / "__init__.py")


def test_the_running_tests_are_those_of_this_checkout():
    assert Path(sys.modules["syvla"].__file__).resolve().parents[1] == ROOT
