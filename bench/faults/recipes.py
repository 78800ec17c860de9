"""Forty recipes and command lines with one mistake each. Every one names a device and files that are not there, so that
a complaint about the key shows that neither was touched."""

import re
import shutil
from pathlib import Path

from bench.faults import campaign
from bench.faults.campaign import OURS, ROOT, Fault

LIMIT = 20
GOOD = """base: {base}
model: {{name: deit3_micro_patch16_224}}
data: {{train: nowhere.beton, val: nowhere.beton}}
stage: {{epochs: 2, batch: 64, mix_chunk: 32, warmup_epochs: 0}}
stages:
- {{name: one, resolution: 32}}
- {{name: two, resolution: 48}}
speed: {{device: cuda}}
"""

# what is replaced in GOOD by what, and a word that the complaint must hold: the key, or what may stand there
IN_A_FILE = {
    "a misspelt key": ("epochs: 2", "epcohs: 2", "nearest is 'epochs'"),
    "a misspelt section": ("model:", "modle:", "nearest is 'model'"),
    "a key in no section": ("base:", "epochs: 3\nbase:", "belongs under `stage:`"),
    "a key of another section": ("{{device: cuda}}", "{{epochs: 3}}", "is not a key"),
    "text for a whole number": ("epochs: 2", "epochs: two", "a whole number at least 1"),
    "a broken number": ("epochs: 2", "epochs: 2.5", "a whole number at least 1"),
    "a number below its range": ("epochs: 2", "epochs: 0", "at least 1"),
    "a number above its range": ("epochs: 2", "epochs: 2, flip: 1.5", "at most 1"),
    "not a number": ("epochs: 2", "epochs: 2, lr: .nan", "a number above 0"),
    "infinity": ("epochs: 2", "epochs: 2, lr: .inf", "a number above 0"),
    "yes for true": ("epochs: 2", "epochs: 2, eval_flip: yes", "true or false"),
    "0 for false": ("epochs: 2", "epochs: 2, eval_flip: 0", "true or false"),
    "a word that is no choice": ("epochs: 2", "epochs: 2, crop: random", "one of rrc, src, center"),
    "null for a number": ("epochs: 2", "epochs: null", "a whole number"),
    "none where it is not allowed": ("epochs: 2", "epochs: none", "a whole number"),
    "one number for two": ("epochs: 2", "epochs: 2, rrc_scale: 0.5", "a list of 2"),
    "three numbers for two": ("epochs: 2", "epochs: 2, rrc_scale: [0.1, 0.5, 1]", "a list of 2"),
    "two numbers the wrong way round": ("epochs: 2", "epochs: 2, rrc_scale: [0.9, 0.1]", "[smallest, largest]"),
    "a mapping for a number": ("epochs: 2", "epochs: {{a: 1}}", "a whole number"),
    "a key twice": ("epochs: 2", "epochs: 2, epochs: 3", "appears twice"),
    "a section twice": ("speed:", "model: {{layer_scale: none}}\nspeed:", "appears twice"),
    "a section that is a list": ("{{device: cuda}}", "[cuda]", "must hold keys"),
    "stages that are no list": ("stages:\n- {{name: one, resolution: 32}}\n- {{name: two, resolution: 48}}",
                                "stages: {{name: one}}", "must be a list"),
    "a stage that is no mapping": ("- {{name: two, resolution: 48}}", "- two", "must hold keys"),
    "two stages of one name": ("name: two", "name: one", "a name of its own"),
    "a name that leaves the folder": ("name: two", "name: ../two", "part of a path"),
    "an odd mixing chunk": ("mix_chunk: 32", "mix_chunk: 31", "mix_chunk"),
    "a batch that is no multiple": ("batch: 64", "batch: 72", "a multiple of mix_chunk 32"),
    "smoothing under bce": ("epochs: 2", "epochs: 2, smoothing: 0.1", "smoothing"),
    "a warm-up longer than the stage": ("warmup_epochs: 0", "warmup_epochs: 9", "warmup_epochs"),
    "a ramp that does not end": ("epochs: 2", "epochs: 2, ramp: [16, 0, 5]", "must end within"),
    "averaged weights of no stage": ("name: one", "name: one, start: ema", "start: ema"),
    "an alias": ("{{device: cuda}}", "&here {{device: cuda}}\nlog: *here", "aliases and tags are not allowed"),
    "a tab for blanks": ("data: {{", "data:\n\t{{", "line"),
    "an open bracket": ("{{device: cuda}}", "{{device: cuda", "line"),
    "two bases": ("base: {base}", "base: [{base}, {base}]", "the name of one file"),
    "an empty file": (GOOD, "", "is empty"),
}  # fmt: skip
ON_THE_COMMAND_LINE = {
    "an unknown key": ("--stage.epcohs=3", "nearest is --stage.epochs"),
    "the beginning of a key": ("--stage.epoch=3", "--stage.epochs"),
    "a bad value": ("--stage.lr=fast", "a number above 0"),
}


def run(folder: Path, *, quick: bool) -> list[Fault]:
    cases = [(folder, name) for name in [*IN_A_FILE, *ON_THE_COMMAND_LINE][:: 5 if quick else 1]]
    shutil.copy(ROOT / "recipes" / "base.yaml", folder)
    faults = []
    for (_, name), ended in campaign.each(cases, _train, limit=LIMIT, at_once=2):
        outcome, note = campaign.judged(ended, right=lambda value: False)
        _, word = _recipe_and_word(name)
        where = "--stage" if name in ON_THE_COMMAND_LINE else f"{name}.yaml"
        if outcome == "detected" and (word not in note or not re.search(re.escape(where), note)):
            outcome = "silent"
        faults.append(Fault(OURS, name, outcome, note))
    return faults


def _recipe_and_word(name: str):
    if name in ON_THE_COMMAND_LINE:
        return GOOD, ON_THE_COMMAND_LINE[name][1]
    old, new, word = IN_A_FILE[name]
    assert GOOD.count(old) == 1, name
    return GOOD.replace(old, new), word


def _train(folder: Path, name: str):
    import train_imagenet

    path = folder / f"{name}.yaml"
    text = _recipe_and_word(name)[0].format(base="base.yaml")
    path.write_text(text)
    extra = ON_THE_COMMAND_LINE[name][:1] if name in ON_THE_COMMAND_LINE else ()
    train_imagenet.main(["--cfg", str(path), f"--log.out={folder}", "--log.name=run", *extra])
    return "trained"
