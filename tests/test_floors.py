"""Floors: a module imports only from its own package and from packages below it, and no modules import each other in a
circle. See docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {  # package or script -> the packages that it may import
    "ffcv_ops": set(),
    "config": {"ffcv_ops"},
    "training": {"ffcv_ops", "config"},
    "conversion": {"ffcv_ops", "config"},
    "report": {"ffcv_ops", "config", "training"},
    "tools": {"ffcv_ops", "config", "training", "conversion", "report"},
    "rn_vs_vit": {"ffcv_ops", "config", "training", "conversion", "report", "tools"},
    "bench": {"ffcv_ops", "config", "training", "conversion", "report", "tools"},
    "train_imagenet": {"ffcv_ops", "config", "training", "report"},
    "write_datasets": {"ffcv_ops", "config", "conversion", "tools"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names.add(node.module.partition(".")[0])
    return names


def source_files(part: str) -> list[Path]:
    script = ROOT / f"{part}.py"
    return [script] if script.exists() else sorted((ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("part", BELOW)
def test_imports_only_from_below(part):
    files = source_files(part)
    assert files
    forbidden = BELOW.keys() - BELOW[part] - {part}
    arrows_back = {str(path.relative_to(ROOT)): found for path in files if (found := imported(path) & forbidden)}
    assert not arrows_back


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert packages | scripts == BELOW.keys()


def test_an_arrow_back_is_found(tmp_path):
    path = tmp_path / "low.py"
    path.write_text("def f():\n    from training.network.model import create\n    import bench.loader as b\n")
    assert imported(path) == {"training", "bench"}


def edges(files: dict[str, Path]) -> dict[str, set[str]]:
    """For each module of `files`, {dotted name: path}, those that it imports, inside functions too. `from a import b`
    is an import of the module a.b where there is one, else of a."""
    found = {}
    for name, path in files.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {module if module in files else node.module for module in inner}
        found[name] = (wanted & files.keys()) - {name}
    return found


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of two or more nodes of which each can be reached from each other."""
    reached = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    return {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}


def modules(part: str) -> dict[str, Path]:
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in source_files(part)}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


@pytest.mark.parametrize("part", BELOW)
def test_no_modules_import_each_other_in_a_circle(part):
    assert not [sorted(circle) for circle in circles(edges(modules(part)))]


def test_a_circle_is_found(tmp_path):
    texts = {
        "p": "from p import a\n",
        "p.a": "import p.b\n",
        "p.b": "def f():\n    from p.c import g\n",
        "p.c": "from p import a\n",
        "p.d": "from p import a\nimport os\n",
    }
    files = {name: tmp_path / name for name in texts}
    for name, path in files.items():
        path.write_text(texts[name])
    assert circles(edges(files)) == {frozenset({"p.a", "p.b", "p.c"})}
