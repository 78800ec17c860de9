"""Trains DeiT III vision transformers (and what they are compared with) from .beton files, as a recipe says.

    python train_imagenet.py --cfg recipes/demo.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --data.train=train.beton --data.val=val.beton
    torchrun --nproc-per-node=8 train_imagenet.py --cfg recipes/vit_s_400ep.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --print --at-throughput=1500
    python train_imagenet.py --cfg recipes/demo.yaml --eval-only --init=runs/demo --eval.data=other.beton
    python train_imagenet.py --cfg recipes/transfer/cars.yaml --init=timm:deit3_base_patch16_224.fb_in1k

Everything goes to runs/NAME. The same command again goes on where the last one stopped, bit for bit.
"""

from ffcv_ops.errors import UserError, exits_cleanly, interruptible

if __name__ == "__main__":
    interruptible()

import argparse
import copy
import errno
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn

import report
from config import keys
from config.recipe import SECTIONS, Recipe, StageConfig, base_values, load_recipe, render_recipe
from ffcv_ops import native, rng
from ffcv_ops.loader import eval_loader, train_loader
from training import (
    compiling,
    depth,
    distributed,
    guards,
    judge,
    micro,
    model,
    optim,
    parallel,
    predictions,
    progress,
    schedule,
    stop,
    summary,
    weights,
)
from training.datasets import open_sets, planned_sets
from training.evaluate import Result, evaluate
from training.log import Log
from training.state import RunFolder, State, restore
from training.step import Run, gradients, random_batch, update
from training.step_stats import Meter, StepStats
from training.watchdog import Watchdog


def positive(text: str) -> float:
    """A number above 0."""
    return keys.take(float, text, {"above": 0})


OPTIONS = (
    ("--cfg", {"required": True, "metavar": "FILE", "help": "the recipe"}),
    ("--print", {"action": "store_true", "help": "show the resolved recipe and what its stages cost, and stop"}),
    ("--at-throughput", {"metavar": "N", "type": positive,
                         "help": "with --print: hours at N training images/s and GPU in the first stage"}),
    ("--measure", {"action": "store_true", "help": "with --print: hours at this device's speed, on random images"}),
    ("--init", {"metavar": "WEIGHTS", "help": f"weights to start from: {weights.SOURCES}"}),
    ("--start-at", {"metavar": "STAGE", "help": "leave out the stages before this one (with --init)"}),
    ("--eval-only", {"action": "store_true", "help": "evaluate --init as the last stage does, record it and stop"}),
)  # fmt: skip


def read(argv=None) -> tuple[argparse.Namespace, Recipe, dict]:
    """The options, the run, and the keys of --eval that are given."""
    sections = SECTIONS | {"eval": judge.Asked}
    options, given = keys.parse(__doc__, sections, base_values(), OPTIONS, argv)
    of_eval = keys.of_section(given, "eval")
    recipe = load_recipe(options.cfg, {path: text for path, text in given.items() if not path.startswith("eval.")})
    if of_eval and not options.eval_only:
        raise UserError(f"--eval.{next(iter(of_eval))} belongs to --eval-only")
    if (options.measure or options.at_throughput) and not options.print:
        raise UserError("--measure and --at-throughput belong to --print")
    return options, recipe, of_eval


@exits_cleanly
def main(argv=None) -> signal.Signals | None:
    """Returns the signal that stopped the run before its end, or None."""
    options, recipe, of_eval = read(argv)
    if options.print:
        print_plan(recipe, at_throughput=options.at_throughput, measured=options.measure)
        return None
    ranks = distributed.init_process_group(recipe.speed.device, patience=recipe.watchdog)
    try:
        forward = precision(recipe.speed.precision, ranks.device)
        if options.eval_only:
            asked = keys.build(judge.Asked, of_eval, "--eval.")
            with Watchdog(recipe.watchdog, ranks) as watch:
                judge.judge(Run(recipe, ranks, {}, forward), options.init, asked, watch)
            return None
        first = stage_number(recipe, options.start_at) if options.start_at else 0
        run = Run(recipe, ranks, open_sets(recipe, first=RunFolder(recipe).first_stage(recipe, first)), forward)
        with Watchdog(recipe.watchdog, ranks) as watch, stop.on_request() as asked:
            train_run(run, init=options.init, first=first, asked=asked, watch=watch)
        return None
    except stop.Stopped as stopped:
        return stopped.args[0]
    except KeyboardInterrupt:
        if options.eval_only or not ranks.is_main:
            raise
        raise KeyboardInterrupt(RunFolder(recipe).kept()) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{error}; make room, the same command goes on from the last checkpoint") from error
    finally:
        distributed.destroy_process_group()


def print_plan(recipe: Recipe, *, at_throughput: float | None, measured: bool) -> None:
    """The resolved recipe and, as comments, so that the whole is a recipe, what each stage is and costs."""
    sets, speeds = planned_sets(recipe), [at_throughput] if at_throughput else []
    if measured:
        ranks = distributed.init_process_group(recipe.speed.device)
        speeds = measure(Run(recipe, ranks, sets, precision(recipe.speed.precision, ranks.device)))
    print(render_recipe(recipe) + summary.describe(recipe, sets, images_per_s=speeds), end="")


def precision(word: str, device: torch.device) -> torch.dtype:
    """The type of the forward pass's matrix products."""
    if word == "auto":
        word = "fp32" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if word == "fp16" and device.type == "cpu":
        raise UserError("speed.precision fp16 needs a GPU (its gradients are scaled); use fp32 or bf16 on a CPU")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[word]


def train_run(run: Run, *, init: str | None, first: int, asked, watch: Watchdog) -> None:
    """All stages from number `first` on, or what is left of them, until `asked()` to stop."""
    recipe, ranks = run.recipe, run.ranks
    folder = RunFolder(recipe)
    if (first or recipe.stages[0].head != "keep") and not init and not folder.begun():
        raise UserError(f"stage {recipe.stages[first].name} starts from weights: it needs --init, {weights.SOURCES}")
    with ExitStack() as ending:
        if ranks.is_main:
            ending.enter_context(folder.alone())
            folder.prepare(recipe)
        distributed.barrier()
        saved = folder.load(is_main=ranks.is_main)
        if saved and saved["stage"] < first:
            names = [stage.name for stage in recipe.stages]
            raise UserError(f"{folder.path} stands at stage {names[saved['stage']]}, before --start-at {names[first]};"
                           " go on without --start-at, or give this run a folder with --log.name")  # fmt: skip
        parts = progress.plan(recipe, run.datasets, folder.first_stage(recipe, first)) if ranks.is_main else []
        if saved and ranks.is_main:
            stage = recipe.stages[saved["stage"]]
            folder.check_order(saved, stage.name, run.datasets[stage.data].train.samples)
        log = Log(folder, recipe, parts, is_main=ranks.is_main, world=ranks.world, saved=saved)
        ending.callback(log.close)
        log.say(native.describe())
        given = weights.read(init) if init and not saved else None
        step = saved["step"] if saved else 0
        for number in range(saved["stage"] if saved else first, len(recipe.stages)):
            state, epoch_stats, given = begin_stage(run, number, given, step, say=log.say), StepStats(), None
            if saved:
                epoch_stats = restore(state, saved)
                after = f"after epoch {state.epoch}" + (f" and {state.batch} steps" if state.batch else "")
                log.say(f"{folder.path}: going on at stage {recipe.stages[number].name}, {after}")
                saved = None
            if state.epoch < recipe.stages[number].epochs:
                train_stage(run, state, folder, log, epoch_stats=epoch_stats, asked=asked, watch=watch)
            step = state.step
            if number + 1 < len(recipe.stages):
                given = weights_for(recipe.stages[number + 1], state)
        log.close_bar()
        folder.save_weights("model", state.model, is_main=ranks.is_main)
        if state.average is not None:
            folder.save_weights("model_ema", state.average, is_main=ranks.is_main)
        if ranks.is_main:
            log.say(report.write(folder.path))


def weights_for(following: StageConfig, before: State) -> dict:
    """What a stage starts from, on the host, so that the device is not left with two models."""
    source = before.average if following.start == "ema" else before.model
    return {
        name: tensor.cpu() for name, tensor in distributed.full_state_dict(source.state_dict(), is_main=True).items()
    }


def stage_number(recipe: Recipe, name: str) -> int:
    """The place of a stage in the recipe."""
    names = [stage.name for stage in recipe.stages]
    if name not in names:
        raise UserError(f"--start-at {name}: the stages of {recipe.source} are {', '.join(names)}")
    return names.index(name)


def begin_stage(run: Run, number: int, given: dict | None, step: int, *, say=print) -> State:
    """A fresh model at the stage's resolution, grown from the weights `given` if there are any, and a new optimizer."""
    stage, device = run.recipe.stages[number], run.ranks.device
    torch.manual_seed(run.recipe.seed)
    network = model.create(
        run.recipe.model.name,
        resolution=stage.resolution,
        classes=run.datasets[stage.data].classes,
        drop_path=stage.drop_path,
        layer_scale=run.recipe.model.layer_scale,
        blur_pool=run.recipe.model.blur_pool,
    )
    if given is not None:
        rows = rows_of_head(run, number, given, network) if stage.head == "map" else None
        if rows is not None:
            say(f"stage {stage.name}: {sum(row >= 0 for row in rows)} of {len(rows)} classes keep their weights")
        model.load(network, model.grow(given, network, head=stage.head, rows=rows))
    if run.recipe.speed.drop_path == "subset" and not depth.has_subsets(network):
        raise UserError(f"speed.drop_path subset is for deit3 models; for {run.recipe.model.name} use exact")
    if model.tokens(network) is not None and (stage.ramp or stage.eval_side != stage.resolution):
        fault = f"{run.recipe.model.name} has one resolution; leave out ramp and eval_resolution"
        raise UserError(f"stage {stage.name}: {fault}")
    network.to(device)
    if run.recipe.speed.channels_last and model.tokens(network) is None:
        network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval().requires_grad_(False) if stage.ema is not None else None
    scaler = torch.amp.GradScaler(device.type, enabled=run.precision == torch.float16)
    return State(number, 0, step, network, average, optim.build(network, stage), scaler)


def rows_of_head(run: Run, number: int, given: dict, network: nn.Module) -> list[int]:
    """For each class of the stage the row of the head of `given` that stands for it, -1 for none."""
    data = run.datasets[run.recipe.stages[number].data]
    before = run.datasets.get(run.recipe.stages[number - 1].data) if number else None
    return weights.matching_rows(
        model.head_size(given, network), data.classes,
        old_names=before.train.class_names if before else None, new_names=data.train.class_names,
    )  # fmt: skip


def train_stage(
    run: Run, state: State, folder: RunFolder, log: Log, *, epoch_stats: StepStats, asked, watch: Watchdog
) -> None:
    """The epochs of one stage: train, evaluate, save. `epoch_stats`: of the epoch that is under way."""
    recipe, ranks = run.recipe, run.ranks
    stage = recipe.stages[state.stage]
    loading = {
        "rank": ranks.rank, "world": ranks.world, "workers": recipe.data.workers, "device": ranks.device,
        "cache": recipe.data.cache,
    }  # fmt: skip
    seed = stage_seed(recipe.seed, state.stage)
    train, val, _ = run.datasets[stage.data]
    pages = recipe.data.shuffle_pages
    bad = recipe.data.bad_limit if recipe.data.on_bad_sample == "replace" else None
    batches = train_loader(train.path, train.samples, stage, seed=seed, shuffle_pages=pages, bad_limit=bad, **loading)
    piece = micro.find(run, state, stage)
    seen = micro.in_evaluation(recipe.speed.micro_batch, piece)
    val_batches = eval_loader(val.path, val.samples, stage, batch=seen, **loading)
    batches = watch.watched(batches, f"stage {stage.name}")
    val_batches = watch.watched(val_batches, f"evaluating in stage {stage.name}")
    steps = len(batches)
    if recipe.speed.compile:
        compiling.compile_stage(run, state, stage, piece, say=log.say)
    forward = parallel.distribute(state, stage, ranks, recipe.speed.parallel, accumulates=piece < run.share(stage))
    log.begin_stage(stage, done=steps * state.epoch + state.batch)
    meter, spikes = Meter(ranks.device), guards.Spikes()
    while state.epoch < stage.epochs:
        means = epoch_stats
        shown = replace(stage, resolution=schedule.resolution(stage, state.epoch))
        batches.decoder.resolution = shown.resolution
        readings = train_epoch(
            run, state, shown, forward, batches, seed=seed, piece=piece, meter=meter, due=folder.due, log=log,
            asked=asked,
        )  # fmt: skip
        with guards.explained_memory(run, stage, piece):
            for reading in readings:
                means += reading.means
                guards.heed(run, state, stage, folder, log, reading, means, spikes)
        epoch_stats = StepStats()
        state.epoch, state.batch = state.epoch + 1, 0
        lr, last = state.optimizer.param_groups[0]["lr"], state.epoch == stage.epochs
        row = {"stage": stage.name, "epoch": state.epoch, "step": state.step, "lr": lr, **means.row()}
        row["bad_samples"] = distributed.all_reduce_total(batches.bad.replaced, ranks.device)
        if row["bad_samples"]:
            log.say(f"{train.path}: bad samples replaced: {row['bad_samples']}; in this rank {batches.bad.worst()}")
        if state.epoch % recipe.log.eval_every == 0 or last:
            networks = [state.model] if state.average is None else [state.model, state.average]
            with guards.explained_evaluation(run, stage, seen, piece=piece):
                result, *averaged = evaluated(run, stage, networks, val_batches)
            row |= {"top1": result.top1, "top5": result.top5, "val_loss": result.loss, "val_images": result.images}
            for its in averaged:
                row |= {"ema_top1": its.top1, "ema_top5": its.top5}
        log.row(kind="epoch", epochs=stage.epochs, resolution=shown.resolution, **row)
        if last:
            folder.save_weights(stage.name, state.model, is_main=ranks.is_main)
            log.end_stage(f"top-1 {100 * result.top1:.2f} %")
            with guards.explained_evaluation(run, stage, seen, piece=piece), evaluating(run, state.model):
                made = predictions.collect(run, stage, state.model, val_batches.epoch(0))
            if ranks.is_main:
                predictions.save(folder.path / predictions.FILE, made, say=log.say)
        guards.save(run, state, stage, folder, log, epoch_stats, needed=last)
        if ranks.is_main:
            report.refresh(folder.path, say=log.say)


def train_epoch(
    run: Run, state: State, stage: StageConfig, forward, batches, *, seed, piece, meter: Meter, due, log: Log, asked
):
    """The optimizer steps of one epoch, or what is left of it. Yields a `LogPoint` at each log point: only there does
    the host wait for the device. One comes every `log.every` steps, at the epoch's end, and when all ranks are `asked`
    to stop."""
    recipe = run.recipe
    state.model.train()
    meter.begin()
    waiting = time.perf_counter()
    for images, labels in batches.epoch(state.epoch, state.batch):
        waited = time.perf_counter() - waiting
        in_stage = state.epoch * len(batches) + state.batch
        lr = schedule.of_stage(stage, in_stage, len(batches))
        optim.set_lr(state.optimizer, lr)
        loss = gradients(run, state, stage, forward, images, labels, step=in_stage, seed=seed, piece=piece)
        norm, bad = update(run, state, stage, loss)
        state.batch += 1
        meter.add(loss, norm, bad, stage.batch, waited)
        stopping, regular, last = asked(), state.batch % recipe.log.every == 0, state.batch == len(batches)
        if stopping or regular or last:
            wanted = run.ranks.is_main and not last and due()  # the epoch's end saves anyway
            reading = meter.read(stop=stopping, due=wanted)
            row = reading.means.row()
            if regular:
                row["bad_samples"] = distributed.all_reduce_total(batches.bad.replaced, run.ranks.device)
                log.row(kind="step", stage=stage.name, epoch=state.epoch, step=state.step, lr=lr, **row)
            log.advance(reading.means.steps, state.epoch + 1, row)
            yield reading
            meter.begin()
        waiting = time.perf_counter()


@contextmanager
def evaluating(run: Run, *networks: nn.Module):
    """Evaluation's batches have other shapes than training's, so nothing is compiled for them."""
    eager = torch.compiler.set_stance("force_eager") if run.recipe.speed.compile else nullcontext()
    with ExitStack() as whole, eager:
        for network in networks:
            whole.enter_context(parallel.gathered(network))
        yield


def evaluated(run: Run, stage: StageConfig, networks: Sequence[nn.Module], batches) -> list[Result]:
    """Each network on all of the validation set, which is read once."""
    with evaluating(run, *networks):
        return evaluate(
            networks, batches.epoch(0), device=run.ranks.device, autocast=run.autocast, flip=stage.eval_flip
        )


def stage_seed(seed: int, number: int) -> int:
    """A seed for each stage, so that a fine-tune does not show the crops of the pre-training again (63 bits)."""
    return int(rng.bits(rng.RandomKey(seed, number), rng.STAGE)) >> 1


def measure(run: Run) -> list[float]:
    """Training images per second of this device in each stage, without a loader."""
    speeds = []
    for number, stage in enumerate(run.recipe.stages):
        state = begin_stage(run, number, None, 0)
        piece = micro.find(run, state, stage)
        batch, forward = random_batch(run, stage, piece), state.model.train()
        if run.recipe.speed.compile:
            compiling.compile_stage(run, state, stage, piece, say=lambda text: print(f"# {text}"))

        def step(state=state, stage=stage, forward=forward, batch=batch, piece=piece):
            loss = gradients(run, state, stage, forward, *batch, step=state.step, seed=0, piece=piece)
            update(run, state, stage, loss)

        speeds.append(summary.measured(step, piece, run.ranks.device))
    return speeds


if __name__ == "__main__":
    main()
