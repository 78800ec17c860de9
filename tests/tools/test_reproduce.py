"""docs/reproduce.md says what the recipes and the published numbers say."""

import json
import re
from pathlib import Path

import pytest

from config.recipe import load_recipe
from tools import reproduce

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))
PUBLISHED = json.loads((ROOT / "recipes" / "published.json").read_text())
CURVES = json.loads((ROOT / "recipes" / "official_curves.json").read_text())


@pytest.fixture(scope="module")
def table():
    return reproduce.table()


def test_the_page_holds_the_table(table):
    held = PAGE.partition(reproduce.BEGIN)[2].partition(reproduce.END)[0].strip()
    assert held == table, "run `python -m tools.reproduce docs/reproduce.md`"


def test_every_stage_of_every_recipe_has_a_row_with_its_cost(table):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    paths = [path for path in RECIPES if path.stem not in ("base", "demo", "smoke", "finetune_own")]
    named = {path: f"`{path.relative_to(ROOT / 'recipes').with_suffix('')}`" for path in paths}
    stages = {(named[path], stage.name) for path in paths for stage in load_recipe(path).stages}
    assert {(row[0], row[1]) for row in rows} == stages
    assert len(rows) == len(stages)
    by_hand = next(row for row in rows if row[:2] == ["`vit_s_400ep`", "pretrain_224"])
    assert by_hand[4] == "80.4 (paper)"
    assert by_hand[8:10] == ["22.1", "4.60"]
    assert float(by_hand[10]) == pytest.approx(400 * 625 * 2048 * 4.60e9 * 6 / 40e12 / 3600, rel=0.01)


@pytest.mark.parametrize("numbers", [PUBLISHED, CURVES])
def test_published_numbers_belong_to_stages_that_exist(numbers):
    for name, stages in numbers.items():
        known = {stage.name: stage for stage in load_recipe(ROOT / "recipes" / f"{name}.yaml").stages}
        assert stages.keys() <= known.keys(), name
        if numbers is CURVES:
            assert all(max(map(int, curve)) == known[stage].epochs for stage, curve in stages.items()), name


def test_curves_end_where_the_published_results_are():
    """The README's tables against its own logs."""
    both = [(stage["top1"], CURVES[name][key]) for name, stages in PUBLISHED.items() if name in CURVES
            for key, stage in stages.items() if key in CURVES[name]]  # fmt: skip
    assert len(both) == 11
    for top1, curve in both:
        assert curve[max(curve, key=int)] == pytest.approx(top1, abs=0.08)


def test_all_decisions_are_there_and_recipes_name_no_others():
    decisions = re.findall(r"^\| (D\d+) \|", PAGE, re.MULTILINE)
    assert decisions == [f"D{number}" for number in range(1, 38)]
    for path in RECIPES:
        assert set(re.findall(r"\bD\d+\b", path.read_text())) <= set(decisions), path


def test_a_page_without_its_markers_is_left_alone(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    monkeypatch.setattr(reproduce, "table", lambda: "| a |")
    monkeypatch.setattr("sys.argv", ["reproduce", str(page)])
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == 2
    assert "once each" in capsys.readouterr().err
    assert page.read_text() == "nothing"
    page.write_text(f"a\n{reproduce.BEGIN}\nold\n{reproduce.END}\nb\n")
    reproduce.main()
    assert page.read_text() == f"a\n{reproduce.BEGIN}\n| a |\n{reproduce.END}\nb\n"
