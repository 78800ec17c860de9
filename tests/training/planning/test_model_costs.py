import json
import subprocess
import sys
from pathlib import Path

import pytest

from config.recipe import load_recipe
from tools.model_costs import networks
from training.planning.model_costs import TABLE, count, model_costs

ROOT = Path(__file__).resolve().parents[3]
NETWORKS = networks()
QUICK = (
    "deit3_micro_patch16_224, 48 px",
    "deit3_small_patch16_224, 224 px, stochastic depth",
    "resnet50, 192 px, blur",
)
AGAIN = "run `python -m tools.model_costs` again"


def test_the_table_has_the_networks_of_all_recipes():
    assert list(json.loads(TABLE.read_text())) == list(NETWORKS), AGAIN


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NETWORKS]
)
def test_the_table_says_what_the_network_itself_says(name):
    config, resolution, drop_path = NETWORKS[name]
    known = model_costs(config, resolution, 37, drop_path=drop_path)
    assert known == count(config, resolution, 37, drop_path=drop_path), AGAIN


def test_a_network_that_is_not_in_the_table_is_counted():
    recipe = load_recipe(ROOT / "recipes/smoke.yaml", {"stage.resolution": "64"})
    known = model_costs(recipe.model, 64, 5, drop_path=0.0)
    assert known.tokens == 16
    assert known.parameters > 1_000_000


def test_a_network_of_the_table_needs_no_torch():
    code = """
import sys
from config.recipe import load_recipe
from training.planning.model_costs import model_costs
recipe = load_recipe("recipes/vit_h_800ep.yaml")
costs = model_costs(recipe.model, 224, 1000, drop_path=0.5)
assert round(costs.gmacs) == 167 and costs.tokens == 256, costs
sys.exit(bool({"torch", "timm"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
