"""The oldest versions that pyproject.toml allows have what the code uses."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version


def least(name: str) -> Version:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    (wanted,) = (one for one in map(Requirement, asked) if one.name == name)
    return min(Version(part.version) for part in wanted.specifier if part.operator == ">=")


def test_timms_attention_takes_is_causal():
    """With 1.0.25 every deit3 model ends in a TypeError: training/network/stochastic_depth.py calls their attention
    with it."""
    assert least("timm") >= Version("1.0.26")
