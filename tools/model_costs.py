"""Makes recipes/model_costs.json anew: what each network of recipes/ costs, so that --print need not build it.

    python -m tools.model_costs

Takes some minutes: every network is built on shapes, with two numbers of classes. Run it after a change of training/'s
models, of timm's, or of a recipe's network or resolution; tests/training/planning/test_model_costs.py says when.
"""

import json

from config import schedule
from config.parser import Parser
from config.recipe import BASE_RECIPE, load_recipe
from config.schema import ModelConfig
from ffcv_ops.errors import exits_cleanly
from training.planning.model_costs import TABLE, count, row_name

CLASSES = (10, 1010)  # everything is linear in the number of classes, so two tell all


def networks() -> dict[str, tuple[ModelConfig, int, float]]:
    """{row's name: (model, resolution, drop_path)} of the stages of all recipes."""
    found = {}
    for path in sorted(BASE_RECIPE.parent.glob("**/*.yaml")):
        recipe = load_recipe(path)
        for stage in recipe.stages:
            for side in schedule.resolutions(stage):
                name = row_name(recipe.model, side, drop_path=stage.drop_path)
                found[name] = (recipe.model, side, stage.drop_path)
    return dict(sorted(found.items()))


def row(config: ModelConfig, resolution: int, drop_path: float) -> dict:
    few, many = (count(config, resolution, classes, drop_path=drop_path) for classes in CLASSES)
    numbers = ((one.parameters, one.macs, *one.saved_fp32, *one.saved_bf16) for one in (few, many))
    names = ("parameters", "macs", "fp32_once", "fp32_per_sample", "bf16_once", "bf16_per_sample")
    return {"tokens": few.tokens, **{name: _line(*both) for name, *both in zip(names, *numbers, strict=True)}}


def _line(few, many):
    """a and b of a + b x classes, through both counts."""
    per_class = (many - few) // (CLASSES[1] - CLASSES[0])
    return [few - per_class * CLASSES[0], per_class]


@exits_cleanly
def main(argv=None) -> None:
    Parser(description=__doc__).parse_args(argv)
    lines = []
    for name, network in networks().items():
        lines.append(f"{json.dumps(name)}: {json.dumps(row(*network))}")
        print(name, flush=True)
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{TABLE}: {len(lines)} networks")


if __name__ == "__main__":
    main()
