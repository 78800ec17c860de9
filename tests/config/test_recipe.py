import dataclasses
from pathlib import Path

import pytest

from config.options import all_names
from config.recipe import BASE_RECIPE, base_values, load_recipe, render_recipe, result_changing_diff
from config.schema import SECTIONS, StageConfig
from config.yaml_file import read_yaml
from ffcv_ops.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))

# The vocabulary of recipes and command lines. A key added here needs a recipe that sets it.
FROZEN = """
seed on_nonfinite nonfinite_in_a_row watchdog
data.train data.val data.finetune_train data.finetune_val data.workers data.cache data.decoder data.shuffle_pages
data.on_bad_sample data.bad_limit
model.name model.args model.layer_scale model.classes model.mean model.std model.blur_pool
stage.name stage.data stage.resolution stage.ramp stage.epochs stage.batch stage.crop stage.rrc_scale
stage.interpolation stage.min_oversampling stage.flip stage.augment stage.jitter
stage.erasing stage.erasing_mode stage.repeats stage.sampling stage.mixup stage.cutmix stage.mix_chunk stage.smoothing
stage.loss stage.bce_threshold stage.class_weights stage.distill stage.teacher stage.distill_alpha stage.distill_tau
stage.drop_path stage.freeze stage.optimizer stage.lr stage.layer_decay stage.min_lr stage.warmup_epochs stage.warmup_lr
stage.schedule stage.weight_decay stage.betas stage.eps stage.momentum stage.nesterov stage.clip_norm stage.ema
stage.best stage.patience stage.start stage.head
stage.eval_resolution stage.eval_crop stage.eval_flip
speed.device speed.precision speed.compile speed.deterministic speed.cuda_graphs speed.drop_path speed.parallel
speed.micro_batch speed.grad_checkpointing speed.channels_last
log.out log.name log.every log.eval_every log.tensorboard log.tracker log.save_every log.keep
"""


def schema():
    return all_names(SECTIONS)


def test_the_list_of_keys_is_frozen():
    assert schema() == FROZEN.split()


def test_base_holds_every_key_in_the_schemas_order_each_with_a_comment():
    content = read_yaml(BASE_RECIPE)
    found = [f"{name}.{row}" if isinstance(rows, dict) else name
             for name, rows in content.items() for row in (rows if isinstance(rows, dict) else [""])]  # fmt: skip
    assert found == schema()
    lines = [line for line in BASE_RECIPE.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not line.endswith(":") and "  # " not in line] == []


def test_a_base_may_be_any_recipe_and_what_is_built_on_it_wins_over_its_rows_too(write):
    """Three files deep, with the rows of the middle one."""
    write("base: base.yaml\nseed: 5\nstage: {lr: 1e-3, flip: 0}\n", "first.yaml")
    rows = "stages:\n- {name: a, lr: 2e-3, epochs: 20}\n- {name: b, epochs: 30, batch: 512}\n"
    write(f"base: first.yaml\nseed: 6\n{rows}", "second.yaml")
    run = load_recipe(write("base: second.yaml\nstage: {epochs: 40}\n"))
    assert (run.seed, Path(run.source).name) == (6, "x.yaml")
    found = [(s.name, s.lr, s.epochs, s.batch, s.flip) for s in run.stages]
    assert found == [("a", 2e-3, 40, 2048, 0), ("b", 1e-3, 40, 512, 0)]
    run = load_recipe(write("base: second.yaml\nstages: [{name: c}]\n"), {"stage.lr": "3e-3"})
    assert [(s.name, s.lr, s.epochs) for s in run.stages] == [("c", 3e-3, 400)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_a_short_list_of_deltas(path):
    run = load_recipe(path)
    assert run.source == str(path)
    assert path.read_text().startswith("#")
    if path != BASE_RECIPE:
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= 25
        assert (path.parent / read_yaml(path)["base"]).resolve() in (BASE_RECIPE, *RECIPES)


def test_the_papers_vit_s_in_400_epochs():
    """The values of the paper and of the official commands, written out once more by hand."""
    run = load_recipe(ROOT / "recipes" / "vit_s_400ep.yaml")
    assert (run.model.name, run.model.layer_scale) == ("deit3_small_patch16_224", 1e-4)
    pretrain, finetune = (dataclasses.asdict(stage) for stage in run.stages)
    shared = {
        "data": "main", "ramp": None, "crop": "rrc", "rrc_scale": (0.08, 1.0), "interpolation": "bicubic", "flip": 0.5,
        "min_oversampling": None, "erasing": 0, "erasing_mode": "pixel",
        "mixup": 0.8, "cutmix": 1.0, "drop_path": 0,
        "min_lr": 1e-5, "warmup_epochs": 5, "warmup_lr": 1e-6, "schedule": "epoch", "betas": (0.9, 0.999),
        "bce_threshold": 0, "eps": 1e-8, "momentum": 0.9, "nesterov": False, "ema": 0.99996, "start": "last",
        "head": "keep",
        "eval_resolution": None, "eval_crop": 1.0, "eval_flip": False, "sampling": "uniform", "class_weights": "none",
        "distill": "none", "teacher": None, "distill_alpha": 0.5, "distill_tau": 1.0, "freeze": None,
        "layer_decay": None, "best": "top1", "patience": None,
    }  # fmt: skip
    assert pretrain == shared | {
        "name": "pretrain_224", "resolution": 224, "epochs": 400, "batch": 2048, "jitter": 0.3,
        "augment": "three(ops=gray+solarize+blur)",
        "repeats": 3, "mix_chunk": 256, "smoothing": 0, "loss": "bce", "optimizer": "lamb", "lr": 4e-3,
        "weight_decay": 0.02, "clip_norm": 1.0,
    }  # fmt: skip
    assert finetune == shared | {
        "name": "finetune_384", "resolution": 384, "epochs": 20, "batch": 512, "jitter": None,
        "augment": "rand(config=rand-m9-mstd0.5-inc1)",
        "repeats": 1, "mix_chunk": 64, "smoothing": 0.1, "loss": "ce", "optimizer": "adamw", "lr": 1e-5,
        "weight_decay": 0.1, "clip_norm": None,
    }  # fmt: skip


# --- order and round trip ------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Writes a recipe beside a copy of base.yaml."""
    (tmp_path / "base.yaml").write_bytes(BASE_RECIPE.read_bytes())

    def write(text, name="x.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_the_command_line_beats_the_row_beats_the_recipe_beats_the_base(write):
    path = write(
        "base: base.yaml\nseed: 3\nstage: {epochs: 50, lr: 2e-3}\n"
        "stages:\n- {name: a}\n- {name: b, epochs: 60, start: ema}\n"
    )
    run = load_recipe(path)
    assert (run.seed, run.data.cache) == (3, "os")
    assert [(s.name, s.epochs, s.lr, s.batch, s.start) for s in run.stages] == [
        ("a", 50, 0.002, 2048, "last"),
        ("b", 60, 0.002, 2048, "ema"),
    ]
    run = load_recipe(path, {"stage.epochs": "70", "seed": "4", "data.cache": "process", "stage.jitter": "none"})
    assert (run.seed, run.data.cache) == (4, "process")
    assert [(s.epochs, s.jitter) for s in run.stages] == [(70, None), (70, None)]


def test_a_recipe_without_stages_is_one_stage(write):
    run = load_recipe(write("base: base.yaml\nstage: {loss: ce, betas: [0.5, 0.6]}\n"))
    assert [(s.name, s.loss, s.betas) for s in run.stages] == [("train", "ce", (0.5, 0.6))]


def test_a_base_elsewhere(write, tmp_path):
    (tmp_path / "inner").mkdir()
    assert load_recipe(write("base: ../base.yaml\nseed: 9\n", "inner/x.yaml")).seed == 9


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_rendered_run_loads_as_an_equal_run(path, write):
    run = load_recipe(path, {"log.out": "a b: #c", "data.train": "ünï \t'code\".beton", "stage.eps": "3.3e-7"})
    saved = write(render_recipe(run), "resolved.yaml")
    again = load_recipe(saved)
    assert again == run
    assert again.log.out == "a b: #c"
    assert render_recipe(again) == saved.read_text()
    assert load_recipe(path) != run


def test_a_run_that_is_older_than_a_key_has_base_yamls_value(write):
    run = load_recipe(ROOT / "recipes" / "demo.yaml")
    lines = render_recipe(run).splitlines(keepends=True)
    older = write("".join(line for line in lines if line.split(":")[0].strip() not in ("decoder", "patience")))
    with pytest.raises(UserError, match="is missing"):
        load_recipe(older)
    older.with_name("run.json").write_text("{}")
    assert load_recipe(older) == run


def test_stages_that_share_nothing_are_rendered_too(write):
    other = {
        "name": "b", "data": "finetune", "resolution": 64, "ramp": (32, 1, 2), "epochs": 3, "batch": 8, "crop": "src",
        "rrc_scale": (0.5, 0.6), "interpolation": "bilinear", "min_oversampling": 1.2, "flip": 0.1, "augment": "none",
        "jitter": None, "erasing": 0.5, "erasing_mode": "const",
        "repeats": 1, "mixup": 0.1, "cutmix": 0.1, "mix_chunk": 4, "smoothing": 0.2, "loss": "ce",
        "bce_threshold": 0.2, "drop_path": 0.1,
        "optimizer": "sgd", "lr": 1.5, "min_lr": 0.1, "warmup_epochs": 1, "warmup_lr": 0.1, "schedule": "step",
        "weight_decay": 0.0, "betas": (0.1, 0.2), "eps": 1e-6, "momentum": 0.1, "nesterov": True,
        "clip_norm": None, "ema": None,
        "sampling": "balanced", "class_weights": "balanced", "distill": "soft", "teacher": "timm:a",
        "distill_alpha": 0.25, "distill_tau": 2.0, "freeze": 3, "layer_decay": 0.5, "best": "val_loss", "patience": 4,
        "start": "ema", "head": "new", "eval_resolution": 96, "eval_crop": 0.875, "eval_flip": True,
    }  # fmt: skip
    run = load_recipe(BASE_RECIPE)
    data = dataclasses.replace(run.data, finetune_train="a.beton", finetune_val="b.beton")
    run = dataclasses.replace(run, data=data, stages=(run.stages[0], StageConfig(**other)))
    assert load_recipe(write(render_recipe(run))) == run


def test_base_values_are_what_help_shows():
    values = base_values()
    assert [f"{name}.{row}".lstrip(".") for name, rows in values.items() for row in rows if name] == schema()[4:]
    general = {"seed": 0, "on_nonfinite": "stop", "nonfinite_in_a_row": 20, "watchdog": 20.0}
    assert (values[""], values["stage"]["jitter"]) == (general, 0.3)


# --- bad input -----------------------------------------------------------------------------------------------------

STUB = """
import sys
sys.path.insert(0, {root!r})
from ffcv_ops.errors import exits_cleanly
from config import command_line
from config.recipe import base_values, load_recipe, render_recipe
from config.schema import SECTIONS

@exits_cleanly
def main():
    options, overrides = command_line.parse("Trains.", SECTIONS, base_values(), [("--cfg", dict(required=True))])
    print(render_recipe(load_recipe(options.cfg, overrides)))

main()
"""


@pytest.fixture
def complaint(run_python, tmp_path):
    """complaint(*argv): what a command line says on stderr, which must be one line, with exit status 2 and nothing on
    stdout."""

    def complaint(*argv):
        stub = tmp_path / "stub.py"
        stub.write_text(STUB.format(root=str(ROOT)))
        ended = run_python([stub, *argv], timeout=60)
        assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
        assert ended.stderr.startswith("error: ")
        assert ended.stderr.count("\n") == 1
        return ended.stderr

    return complaint


BAD_RECIPES = {
    # keys and sections
    "stage: {epohcs: 4}": "x.yaml: stage.epohcs is not a key; the nearest is 'epochs'",
    "modle: {name: a}": "x.yaml: 'modle' is not a section; the nearest is 'model'",
    "epochs: 4": "x.yaml: 'epochs' is not a section; it belongs under `stage:`",
    "stages:\n- {name: a}\n- {name: b, epohcs: 4}": "x.yaml: stages row 2: epohcs is not a key; the nearest",
    "3: {name: a}": "x.yaml: '3' is not a section",
    "model: {3: a}": "x.yaml: model.3 is not a key",
    "stage: 3": "x.yaml: stage must hold keys",
    "data:": "x.yaml: data must hold keys",
    "model: [name]": "x.yaml: model must hold keys",
    "seed: {a: 1}": "x.yaml: seed is {'a': '1'}; it must be a whole number",
    "stages: {name: a}": "x.yaml: stages must be a list of rows",
    "stages: []": "x.yaml: stages must be a list of rows",
    "stages: [a]": "x.yaml: stages row 1 must hold keys",
    # types
    "stage: {epochs: 16.7}": "stage.epochs is '16.7'; it must be a whole number at least 1",
    "stage: {epochs: 1e3}": "stage.epochs is '1e3'; it must be a whole number",
    "stage: {epochs: true}": "stage.epochs is 'true'",
    "stage: {epochs: [4]}": "stage.epochs is ['4']",
    "stage: {epochs: null}": "stage.epochs is 'null'",
    "stage: {epochs: }": "stage.epochs is ''",
    "data: {train: ~}": "data.train is '~'; it must be text",
    "stage: {ema: null}": "stage.ema is 'null'; it must be a number above 0 and below 1 or none",
    "stage: {lr: .nan}": "stage.lr is '.nan'; it must be a number at least 1e-20",
    "stage: {lr: nan}": "stage.lr is 'nan'",
    "stage: {lr: .inf}": "stage.lr is '.inf'",
    "stage: {lr: 1e999}": "stage.lr is '1e999'",
    "stage: {lr: fast}": "stage.lr is 'fast'",
    "speed: {compile: yes}": "speed.compile is 'yes'; it must be true or false",
    "speed: {compile: 1}": "speed.compile is '1'",
    "stage: {rrc_scale: 0.5}": "stage.rrc_scale is '0.5'; it must be a list of 2",
    "stage: {rrc_scale: [0.1, a]}": "stage.rrc_scale is ['0.1', 'a']",
    # words and ranges
    "stage: {loss: mse}": "stage.loss is 'mse'; it must be one of bce, ce",
    "stage: {augment: thre}": "stage train: augment: 'thre' is not an augmentation; the nearest is 'three'",
    "stage: {augment: three(}": "augment: 'three(' must read like three, three(ops=gray+blur) or mine.py:name(",
    "stage: {augment: three(opps=gray)}": "augment: three has no option 'opps'; the nearest is 'ops'",
    "stage: {augment: three(gray+sepia)}": "augment: three: ops is 'gray+sepia'; it must be some of gray+solarize+blur",
    "stage: {augment: three(gray+gray)}": "augment: three: ops is 'gray+gray'; it must be some of",
    "stage: {augment: rand(strong)}": "augment: rand: config 'strong': must begin with rand; write it like rand-m9",
    "stage: {augment: trivial(1)}": "augment: trivial has 0 options, not '1' too",
    "stage: {augment: three | jitter(0.1)}": "augment: jitter stands in the chain twice: both would draw the same numb",
    "stage: {augment: nowhere.py:grain}": "augment: nowhere.py cannot be read: No such file or directory",
    "stage: {class_weights: balanced}": "stage train: class_weights: balanced belongs to loss: ce, not to bce",
    "stage: {sampling: balanced}\ndata: {shuffle_pages: 4}": "stage train: sampling: balanced goes through the whole",
    "stage: {distill: hard}": "stage train: distill and teacher belong together",
    "stage: {teacher: resnet18}": "stage train: distill and teacher belong together",
    "stage: {freeze: -1}": "stage.freeze is '-1'; it must be a whole number at least 0 and at most 1,000 or backbone",
    "stage: {optimizer: lion}\nspeed: {parallel: fsdp}": "optimizer lion is not for speed.parallel: fsdp",
    "stage: {best: none, patience: 3}": "stage train: patience needs to know what is better; set best",
    "stage: {best: ema_top1, ema: none}": "stage train: best: ema_top1 needs averaged weights",
    "speed: {grad_checkpointing: true, cuda_graphs: true, compile: true}": "does not go with speed.cuda_graphs",
    "stage: {schedule: cosine}": "stage.schedule is 'cosine'; it must be one of epoch, step",
    "data: {cache: ram}": "data.cache is 'ram'; it must be one of os, process",
    "data: {workers: 0}": "data.workers is '0'; it must be a whole number at least 1 and at most 1,024 or auto",
    "stage: {batch: -2048}": "stage.batch is '-2048'; it must be a whole number at least 1",
    "stage: {resolution: -1}": "stage.resolution is '-1'",
    "stage: {repeats: 0}": "stage.repeats is '0'; it must be a whole number at least 1",
    "stage: {flip: 1.5}": "stage.flip is '1.5'; it must be a number at least 0 and at most 1",
    "stage: {drop_path: 1}": "stage.drop_path is '1'; it must be a number at least 0 and below 1",
    "stage: {clip_norm: 0}": "stage.clip_norm is '0'; it must be a number at least 1e-20 and at most 1,000,000 or none",
    # keys that disagree
    "stage: {smoothing: 0.1}": "stage train: loss bce with smoothing 0.1 makes every class a target",
    "stage: {batch: 300}": "stage train: batch 300 must be a multiple of mix_chunk 256",
    "stage: {batch: 99, mix_chunk: 33}": "stage train: mix_chunk 33 must be even",
    "speed: {micro_batch: 6}": "stage train: batch 2048 must be a multiple of speed.micro_batch 6",
    "speed: {micro_batch: 1}": "stage train: speed.micro_batch 1 must be even",
    "stage: {rrc_scale: [0.9, 0.1]}": "stage train: rrc_scale [0.9, 0.1] must be [smallest, largest]",
    "stage: {ramp: [160, 1]}": "stage.ramp is ['160', '1']; it must be a list of 3",
    "stage: {ramp: [256, 1, 2]}": "stage train: ramp begins at 256 px; it must be 8 to resolution 224",
    "stage: {ramp: [160, 3, 2]}": "stage train: ramp [160, 3, 2] must end within 400 epochs",
    "stage: {warmup_epochs: 401}": "stage train: warmup_epochs 401 is more than epochs 400",
    "stage: {epochs: 2, warmup_epochs: 1}": "2 epochs, of them 1 of warm-up, reach 1e-06 at most, not lr 0.003",
    "stage: {epochs: 4, warmup_epochs: 1}": "reach 0.00256 at most, not lr 0.003; set schedule: step",
    "stage: {min_lr: 0.1}": "stage train: min_lr 0.1 is above lr 0.003",
    "stage: {warmup_lr: 0.1}": "stage train: warmup_lr 0.1 is above lr 0.003",
    "stage: {start: ema}": "stage train: start: ema has no stage before it",
    "stages: [{name: a, ema: none}, {name: b, start: ema}]": "stage b: start: ema needs the averaged weights of",
    "stages: [{name: a}, {name: a}]": "each stage needs a name of its own, not a, a",
    "stage: {name: a/b}": "the name 'a/b' becomes part of a path",
    "log: {name: ../x}": "the name '../x' becomes part of a path",
    "log: {name: a..b}": "the name 'a..b' becomes part of a path",
    "log: {name: .}": "the name '.' becomes part of a path",
    "log: {name: -x}": "the name '-x' becomes part of a path",
    "log: {name: /tmp/x}": "the name '/tmp/x' becomes part of a path",
    "log: {name: 'a b'}": "the name 'a b' becomes part of a path",
    'log: {name: "a\\0b"}': r"the name 'a\x00b' becomes part of a path",
    'log: {name: "a\\nb"}': r"the name 'a\nb' becomes part of a path",
    f"log: {{name: {101 * 'x'}}}": "becomes part of a path; use letters, digits, - and _ only, 100 at most",
    "log: {name: ''}": "log.name is ''; it must be text",
    "stage: {name: ..}": "the name '..' becomes part of a path",
    "stages: [{name: a}, {name: model}]": "a stage cannot be called model",
    "speed: {cuda_graphs: true}": "speed.cuda_graphs belongs to speed.compile: true or max-autotune",
    "speed: {cuda_graphs: true, compile: true, parallel: fsdp}": "speed.cuda_graphs belongs to",
    "stage: {data: finetune}": "a recipe has both and such a stage, or neither",
    "data: {finetune_train: a.beton, finetune_val: b.beton}": "a recipe has both and such a stage, or neither",
    "data: {finetune_val: b.beton}\nstage: {data: finetune}": "a recipe has both and such a stage, or neither",
    # the file itself
    "seed: 1\nseed: 2": "x.yaml, line 3: the key 'seed' appears twice",
    "stage: {lr: 1}\nlog: {every: 5}\nstage: {epochs: 3}": "x.yaml, line 4: the key 'stage' appears twice",
    "stage: {lr: 1": "x.yaml, line ",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_RECIPES)
def test_a_bad_recipe_is_one_line_and_exit_status_2(text, write, tmp_path, complaint):
    path = write(f"base: base.yaml\n{text}\n")
    said = complaint("--cfg", path)
    assert BAD_RECIPES[text] in said
    assert "x.yaml" in said


def test_all_faults_of_a_recipe_are_told_at_once(write):
    path = write(
        "base: base.yaml\nstage: {epohcs: 4, lr: fast, min_lr: 5, batch: 300, mix_chunk: 7}\nspeed: {compile: yes}\n"
    )
    with pytest.raises(UserError) as refusal:
        load_recipe(path, {"log.keep": "0"})
    faults = [line.removeprefix(f"{path}: ").partition(";")[0] for line in str(refusal.value).splitlines()]
    assert faults == [
        "stage.epohcs is not a key",
        "stage.lr is 'fast'",
        "speed.compile is 'yes'",
        "--log.keep is '0'",
        "stage train: mix_chunk 7 must be even: samples are mixed in pairs",
        "stage train: batch 300 must be a multiple of mix_chunk 7",
    ], "min_lr is not held against an lr that is no number"


@pytest.mark.parametrize("text", ["stage: {lr: 1e300}", "stage: {cutmix: 1e308}", "stage: {epochs: 2147483648}",
                                  "model: {classes: 2147483648}"])  # fmt: skip
def test_numbers_out_of_all_proportion_are_refused(text, write):
    with pytest.raises(UserError, match="and at most 1"):
        load_recipe(write(f"base: base.yaml\n{text}\n"))


@pytest.mark.parametrize("stem", ["a b", "-x", "..", "a..b", "x" * 101, "x;y", "x\ny"])
def test_a_recipe_whose_name_cannot_be_a_folders_needs_one(stem, write):
    path = write("base: base.yaml\n", f"{stem}.yaml")
    with pytest.raises(UserError, match=r"becomes part of a path; .* or set log\.name") as said:
        load_recipe(path)
    assert load_recipe(path, {"log.name": "good"}).log.name == "good"
    assert len(str(said.value)) < 500


WHOLE_FILES = {
    b"": "x.yaml is empty",
    b"- base: base.yaml": "x.yaml holds a list",
    b"base": "x.yaml holds a single value",
    b"seed: 3": "keys are missing, the first is on_nonfinite; a recipe without `base: base.yaml` must hold all",
    b"base: bass.yaml": "bass.yaml cannot be read: No such file",
    b"base: [base.yaml]": "x.yaml: base must be the name of one file",
    b"base: x.yaml": "x.yaml: its `base:` leads back to this file",
    b"base: second.yaml": "x.yaml: its `base:` leads back to this file",
    b"base: short.yaml": "x.yaml: data.val is missing",
    b"base: base.yaml\n\xff": "x.yaml is not YAML",
}


@pytest.mark.parametrize("content", WHOLE_FILES)
def test_a_bad_file_is_one_line_and_exit_status_2(content, write, complaint):
    write("base: x.yaml\n", "second.yaml")
    write("".join(line for line in BASE_RECIPE.open() if not line.startswith("  val:")), "short.yaml")
    assert WHOLE_FILES[content] in complaint("--cfg", write(content))


OVERRIDES = {
    "--stage.epohcs=3": "--stage.epohcs is not an option; the nearest is --stage.epochs",
    "--stage.epoch=3": "--stage.epoch is not an option; the nearest is --stage.epochs",
    "--epochs=3": "--epochs is not an option; the nearest is --stage.epochs",
    "--stage.epochs=3.5": "--stage.epochs is '3.5'; it must be a whole number at least 1",
    "--stage.epochs=": "--stage.epochs is empty; give it a value or leave it out",
    "--stage.lr=nan": "--stage.lr is 'nan'",
    "--log.tensorboard=0": "--log.tensorboard is '0'; it must be true or false",
    "--stage.loss=mse": "--stage.loss is 'mse'; it must be one of bce, ce",
    "--seed=-1": "--seed is '-1'; it must be a whole number at least 0",
    "--stage.epochs=1": "stage train: warmup_epochs 5 is more than epochs 1; set warmup_epochs too",
    "--log.name=../../x": "the name '../../x' becomes part of a path",
    "--config-file=x.yaml": "--config-file is not an option",
}


@pytest.mark.parametrize("word", OVERRIDES)
def test_a_bad_override_is_one_line_and_exit_status_2(word, write, complaint):
    assert OVERRIDES[word] in complaint("--cfg", write("base: base.yaml\n"), word)


def test_a_missing_recipe_is_one_line_and_exit_status_2(tmp_path, complaint):
    assert "none.yaml cannot be read: No such file" in complaint("--cfg", tmp_path / "none.yaml")
    assert "required: --cfg" in complaint()


def test_load_refuses_overrides_that_are_no_keys():
    with pytest.raises(UserError, match=r"--stage\.lrr is not a key; the nearest is --stage\.lr"):
        load_recipe(BASE_RECIPE, {"stage.lrr": "1"})


def test_words_that_look_like_truth_values(write):
    run = load_recipe(write('base: base.yaml\nlog: {tensorboard: "False"}\n'), {"speed.compile": "True"})
    assert (run.log.tensorboard, run.speed.compile) == (False, True)


def test_result_changing_diff_names_what_differs():
    recipe = load_recipe(ROOT / "recipes/vit_s_400ep.yaml")
    longer = tuple(dataclasses.replace(stage, epochs=stage.epochs + 1) for stage in recipe.stages)
    assert result_changing_diff(recipe, recipe) == ""
    assert result_changing_diff(recipe, dataclasses.replace(recipe, seed=1)) == "seed 0, not 1"
    assert "epochs" in result_changing_diff(recipe, dataclasses.replace(recipe, stages=longer))
    faster = dataclasses.replace(recipe.speed, precision="bf16")
    assert result_changing_diff(recipe, dataclasses.replace(recipe, speed=faster)) == ""
