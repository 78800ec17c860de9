"""Floors: a module imports only from its own package and from packages below it. See docs/architecture.md."""

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
    path.write_text("def f():\n    from training.model import create\n    import bench.loader as b\n")
    assert imported(path) == {"training", "bench"}
