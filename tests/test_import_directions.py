"""The packages depend on each other in one direction, and what ships as remote code can be shipped.

``modeling_syvla`` <- ``processing`` <- ``serving`` <- ``evaluation`` <- ``training``: evaluation runs the policy that the
server runs, in its process or behind the server. All of ``modeling_syvla`` and
``processing/processing_syvla.py`` with the neighbors it imports are copied flat next to a checkpoint's weights, where
transformers finds their imports by regular expression: only ``from .file import name`` survives the copy.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "modeling_syvla": set(),
    "processing": {"modeling_syvla"},
    "serving": {"modeling_syvla", "processing"},
    "evaluation": {"modeling_syvla", "processing", "serving"},
    "training": {"modeling_syvla", "processing", "serving", "evaluation"},
}
OPTIONAL = {"accelerate", "av", "datasets", "gymnasium", "matplotlib", "mujoco", "pandas", "peft", "pyarrow"}
# transformers.dynamic_module_utils.get_relative_imports, which reads docstrings and comments too.
RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.MULTILINE)


ROOMS = [p.parent for package in MAY_IMPORT for p in sorted((ROOT / package).rglob("__init__.py"))]


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def dotted_imports(nodes) -> set[str]:
    """Absolute names imported by `nodes`, with the names of `from` imports: `a.b`, `a.b.c` for `from a.b import c`."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def imported_modules(nodes) -> set[str]:
    """First parts of the absolute names imported by `nodes`; of our own packages the part after `syvla.`."""
    ours = {"syvla", *(f"syvla.{name}" for name in MAY_IMPORT)}
    names: set[str] = set()
    for name in dotted_imports(nodes):
        first, *rest = name.split(".")
        names.add(rest[0] if rest and f"{first}.{rest[0]}" in ours else first)
    return names


def room_imports(room: Path) -> set[Path]:
    """Rooms and, on a package's top, single files that the files directly in `room` import."""
    found: set[Path] = set()
    for path in room.glob("*.py"):
        tree = ast.parse(path.read_text())
        package = ["syvla", *room.relative_to(ROOT).parts]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = [*base, *(node.module.split(".") if node.module else [])]
                for alias in node.names:
                    found.update(place([*module, alias.name]))
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    found.update(place(alias.name.split(".")))
    return found - {room}


def place(name: list[str]) -> set[Path]:
    """The room of a module's dotted name, or the file itself where it lies on top of a package; nothing if not ours."""
    if name[0] != "syvla" or len(name) < 2 or name[1] not in MAY_IMPORT:
        return set()
    for size in range(len(name), 1, -1):
        path = ROOT.joinpath(*name[1:size])
        if path.with_suffix(".py").is_file():
            return {path.with_suffix(".py") if path.parent.parent == ROOT else path.parent}
        if (path / "__init__.py").is_file():
            return {path}
    return set()


def file_imports(path: Path) -> set[Path]:
    """Our files that a file imports anywhere in it: at the top, in a function, for its annotations, by `import_module`.

    An `__init__.py` names what its package exports under `if TYPE_CHECKING:` and imports it when it is asked for; those
    names are no need of its own.
    """
    tree = ast.parse(path.read_text())
    nodes = executed_at_import(tree) if path.name == "__init__.py" else ast.walk(tree)
    module = list(path.relative_to(ROOT).with_suffix("").parts)
    module = module if module[0] in ("benchmarks", "syvla") else ["syvla", *module]
    found: set[Path] = set()
    for node in nodes:
        names = []
        if isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module" and node.args:
            text = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            names = [[*module[:-1], *text[1:].split(".")] if text.startswith(".") else text.split(".")]
        found.update(other for name in names if (other := source_file(name)))
    return found - {path}


def source_file(name: list[str]) -> Path | None:
    """The file of a module's dotted name, or of the module that the last part is a name of; None if not ours."""
    folder = {"syvla": ROOT, "benchmarks": ROOT / "benchmarks"}.get(name[0])
    if folder is None:
        return None
    for size in (len(name), len(name) - 1):
        path = folder.joinpath(*name[1:size])
        for candidate in (
            path.with_suffix(".py"),
            path / "__init__.py",
            ROOT / "syvla" / f"{'.'.join(name[1:size])}.py",
        ):
            if size > 1 and candidate.is_file():
                return candidate
    return None


def circles(arrows: dict[Path, set[Path]]) -> list[list[Path]]:
    """Groups of nodes that all reach each other, of two or more."""
    reach: dict[Path, set[Path]] = {}
    for start in arrows:
        pending, seen = list(arrows[start]), set()
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending.extend(arrows.get(node, ()))
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in reach if a in reach[a]}
    return [sorted(group) for group in groups]


def executed_at_import(tree: ast.Module):
    """Nodes that run when the module is imported: not function bodies, not `if TYPE_CHECKING:` blocks."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        yield node
        pending.extend(ast.iter_child_nodes(node))


def with_relative_imports(start: Path) -> list[Path]:
    """`start` and the files of its folder that it imports, directly or not."""
    found: list[Path] = []
    pending = [start]
    while pending:
        path = pending.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                pending.append(path.with_name(node.module.split(".")[0] + ".py"))
    return found


def shipped_files() -> list[Path]:
    return python_files("modeling_syvla") + with_relative_imports(ROOT / "processing" / "processing_syvla.py")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrows(package):
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    for path in python_files(package):
        crossing = imported_modules(ast.walk(ast.parse(path.read_text()))) & forbidden
        assert not crossing, f"{path.relative_to(ROOT)} imports {sorted(crossing)}; {package} stands before them"


@pytest.mark.parametrize("room", [r for r in ROOMS if r.parent != ROOT], ids=lambda room: str(room.relative_to(ROOT)))
def test_no_two_rooms_import_each_other(room):
    """Nor does a room reach itself through others, so a reader can take the rooms one after the other."""
    pending, seen = list(room_imports(room)), set()
    while pending:
        other = pending.pop()
        if other in seen or other.is_file():
            continue
        seen.add(other)
        pending.extend(room_imports(other) if other.parent != ROOT else [])
    assert room not in seen, f"{room.relative_to(ROOT)} imports itself through {sorted(str(p) for p in seen)}"


def test_no_files_import_each_other_in_a_circle():
    folders = [*MAY_IMPORT, "benchmarks"]
    files = [path for folder in folders for path in python_files(folder)] + [ROOT / "syvla" / "durable_files.py"]
    arrows = {path: file_imports(path) for path in files}
    names = [[str(path.relative_to(ROOT)) for path in group] for group in circles(arrows)]
    assert not names, f"these files import each other: {names}"
    assert sum(map(len, arrows.values())) > len(files), "the arrows were not found"


@pytest.mark.parametrize("folder", ["integrations", "examples", "benchmarks", "scripts", "tests"])
def test_what_other_folders_import_of_the_package_exists(folder):
    """Also where the libraries for it are missing: LeRobot's plug-in is tested elsewhere, with LeRobot."""
    for path in python_files(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name.split(".") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [[*node.module.split("."), alias.name] for alias in node.names]
            else:
                continue
            for name in names:
                if name[0] == "syvla" and len(name) > 1:
                    assert is_defined(name), f"{path.relative_to(ROOT)}:{node.lineno}: {'.'.join(name)} does not exist"


def is_defined(name: list[str]) -> bool:
    """Whether a dotted name is a module of ours, or a name that a module of ours assigns, defines, imports or exports."""
    folder = ROOT / "syvla" / Path(*name[1:])
    if folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file():
        return True
    file = source_file(name) if len(name) > 2 else ROOT / "syvla" / "__init__.py"
    if file is None:
        return False
    known: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            known.update(alias.asname or alias.name for alias in node.names)
    return name[-1] in known


def test_a_missing_name_is_found():
    assert is_defined(["syvla", "processing", "RobotDataset"])
    assert is_defined(["syvla", "durable_files"])
    assert not is_defined(["syvla", "processing", "robot_dataset"])
    assert not is_defined(["syvla", "processing", "robot_data", "robot_dataset", "NoSuchName"])


def test_a_circle_is_found():
    a, b, c, d = (Path(name) for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {a, d}, d: set()}) == [[a, b, c]]
    assert circles({a: {b, c}, b: {d}, c: {d}, d: set()}) == []


def test_shipped_files_are_flat_and_name_their_neighbors():
    for path in shipped_files():
        name = path.relative_to(ROOT)
        assert len(name.parts) == 2, f"{name}: files that ship with a checkpoint lie flat in their package"
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                flat = node.level == 1 and node.module and "." not in node.module
                assert flat, f"{name}:{node.lineno}: write `from .file import name`, the only form that ships"
        others = set(MAY_IMPORT) & imported_modules(ast.walk(tree))
        assert not others, f"{name} imports {sorted(others)} by its absolute name, which a checkpoint does not have"


def test_no_line_of_a_shipped_file_reads_as_an_import_of_a_missing_file():
    for path in shipped_files():
        for first, second in RELATIVE_IMPORT.findall(path.read_text()):
            target = path.with_name((first or second) + ".py")
            assert target.is_file(), f"{path.relative_to(ROOT)}: a line imports .{first or second}, a missing file"


@pytest.mark.parametrize(
    "entry",
    [
        f"modeling_syvla/{name}.py"
        for name in ("configuration_syvla", "modeling_syvla", "configuration_value", "modeling_value")
    ]
    + ["processing/processing_syvla.py"],
)
def test_an_entry_file_names_all_that_it_needs_itself(entry):
    """Older transformers (seen in 5.4) bring only the files that the entry file imports, not those that these import."""
    path = ROOT / entry
    named = {first or second for first, second in RELATIVE_IMPORT.findall(path.read_text())}
    needed = {other.stem for other in with_relative_imports(path)} - {path.stem}
    assert needed <= named, f"{entry} does not name {sorted(needed - named)}"


def test_shipped_files_have_distinct_names():
    names = [path.name for path in shipped_files() if path.name != "__init__.py"]
    assert len(names) == len(set(names)), f"copied flat, these would overwrite each other: {sorted(names)}"


def test_shipped_files_import_no_optional_dependency_at_module_level():
    for path in [*shipped_files(), ROOT / "processing" / "normalization.py"]:
        if path.is_file():
            heavy = imported_modules(executed_at_import(ast.parse(path.read_text()))) & OPTIONAL
            assert not heavy, f"{path.relative_to(ROOT)} imports {sorted(heavy)} at module level; import it where used"


def test_importing_the_model_loads_nothing_optional():
    """What transformers loads by itself where it is installed (accelerate, say) is not ours to judge."""
    script = """
import sys
from transformers import AutoModel, PreTrainedModel, Qwen2_5_VLForConditionalGeneration, SiglipVisionModel
before = set(sys.modules)
import syvla
print(*set(sys.modules) - before)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not OPTIONAL & set(result.stdout.split())
