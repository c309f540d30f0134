"""What can be checked of the bridge without LeRobot: its name, what it imports, and that it opens nothing pickled.

The checks that need LeRobot are in `integrations/lerobot_policy_server/tests`; `run_checks.sh` runs them.
"""

import ast
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "integrations" / "lerobot_policy_server"
MODULES = {path.stem: ast.parse(path.read_text()) for path in (FOLDER / "lerobot_policy_server").glob("*.py")}


def imported(tree: ast.Module) -> set[str]:
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_lerobot_does_not_take_it_for_a_plug_in():
    """LeRobot imports every distribution whose name starts like this, and expects a policy there."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    assert not project["name"].replace("-", "_").startswith("lerobot_policy_")
    assert "lerobot>=0.6.1,<0.7" in project["dependencies"]


def test_nothing_is_unpickled():
    for name, tree in MODULES.items():
        assert not imported(tree) & {"pickle", "dill", "cloudpickle", "msgpack_numpy", "joblib"}, name
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not {"torch.load", "np.load", "eval", "exec"} & set(calls), name


def test_the_wire_is_syvlas_checked_codec():
    assert "syvla.serving.wire.msgpack_codec" in imported(MODULES["server"])
