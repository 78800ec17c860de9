"""The table of docs/reproduce.md: each stage of each recipe, what was published for it, and what it costs.

    python -m tools.reproduce                       # prints the table
    python -m tools.reproduce docs/reproduce.md     # puts it between the file's two markers

In: recipes/**/*.yaml, recipes/published.json, recipes/official_curves.json. Out: Markdown.
"""

import argparse
import json
from pathlib import Path

from config.parser import Parser
from config.recipe import BASE_RECIPE, load_recipe
from config.text import markdown_table
from ffcv_ops.errors import UserError, exits_cleanly


def parse(argv=None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="the Markdown file to put the table into")
    return parser.parse_args(argv)


if __name__ == "__main__":  # --help and mistakes are answered here: the imports below take seconds
    exits_cleanly(parse)()

from training import datasets
from training.planning import estimate
from training.planning.model_costs import model_costs

RECIPES = BASE_RECIPE.parent
PUBLISHED, CURVES = "published.json", "official_curves.json"
BEGIN, END = "<!-- made by python -m tools.reproduce -->", "<!-- end of what is made -->"
COLUMNS = ("recipe", "stage", "px", "epochs", "top-1", "V2", "ReaL", "official curve, epoch: top-1", "M param.",
           "GMACs", "GPU-hours", "our result")  # fmt: skip
SHOWN = (10, 50, 100, 200, 400, 600)  # epochs of the official curves, besides the last

# What one GPU is taken to sustain, counted as 6 operations per multiply-add: 2 forwards, 4 backwards. timm's published
# training benchmark of an RTX 3090 comes to 39, 42 and 38 for B, L and H at 224, and 27 for S.
OPERATIONS_PER_S = 40e12


def table() -> str:
    """The whole table."""
    published, curves = (json.loads((RECIPES / name).read_text()) for name in (PUBLISHED, CURVES))
    rows = [COLUMNS]
    for path in sorted(RECIPES.glob("**/*.yaml"), key=_place):
        name = path.relative_to(RECIPES).with_suffix("").as_posix()
        if name not in ("base", "demo", "smoke", "finetune_own"):
            stages = _rows(load_recipe(path), published.get(name, {}), curves.get(name, {}))
            rows += [(f"`{name}`", *row) for row in stages]
    return markdown_table(rows, left=2)


def _place(path):
    """Smaller models and shorter schedules first, folders last."""
    sizes = ("ti", "s", "m", "b", "l", "h")
    kind, size, epochs = (*path.stem.split("_"), "", "")[:3]
    named = size in sizes and epochs.endswith("ep")
    order = (sizes.index(size), int(epochs[:-2])) if named else (len(sizes), 0)
    return len(path.parts), str(path.parent), kind == "in21k", *order, path.stem


def _rows(run, published, curves):
    sets = {stage.data: _assumed(run, stage.data) for stage in run.stages}
    for stage in run.stages:
        costs = model_costs(run.model, stage.resolution, sets[stage.data].classes, drop_path=stage.drop_path)
        steps, _ = estimate.stage_length(stage, sets)
        operations = steps * stage.batch * costs.gmacs * estimate.work_share(run, stage, sets) * 6e9
        paper, curve = published.get(stage.name, {}), curves.get(stage.name, {})
        top1 = f"{paper['top1']:.1f} ({paper['source']})" if paper else "-"
        others = (f"{paper[key]:.1f}" if key in paper else "-" for key in ("v2", "real"))
        yield (stage.name, f"{stage.resolution}", f"{stage.epochs}", top1, *others, _points(curve),
               f"{costs.parameters / 1e6:.1f}", f"{costs.gmacs:.2f}", f"{operations / OPERATIONS_PER_S / 3600:,.0f}",
               paper.get("ours", "*not run*"))  # fmt: skip


def _points(curve):
    last = max(map(int, curve), default=0)
    shown = [epoch for epoch in SHOWN if epoch < last] + [last] * bool(curve)
    return ", ".join(f"{epoch}: {curve[str(epoch)]:.1f}" for epoch in shown) or "-"


def _assumed(recipe, word):
    """The data set as published, whatever files are here: the table must not depend on the machine."""
    train = datasets.assumed(datasets.files_of(recipe, word)[0])
    return datasets.DataSet(train, train, train.classes)


@exits_cleanly
def main(argv=None) -> None:
    page, made = parse(argv).page, table()
    if page is None:
        print(made)
        return
    if not page.is_file() or not (text := page.read_text(encoding="utf-8")).count(BEGIN) == text.count(END) == 1:
        raise UserError(f"{page}: needs the lines {BEGIN} and {END}, once each, around the table")
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
