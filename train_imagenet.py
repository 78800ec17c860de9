"""Trains DeiT III vision transformers (and what they are compared with) from .beton files, as a recipe says.

    python train_imagenet.py --cfg recipes/demo.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --data.train=train.beton --data.val=val.beton
    torchrun --nproc-per-node=8 train_imagenet.py --cfg recipes/vit_s_400ep.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --print --at-throughput=1500
    python train_imagenet.py --cfg recipes/demo.yaml --eval-only --init=runs/demo --eval.data=other.beton
    python train_imagenet.py --cfg recipes/transfer/cars.yaml --init=timm:deit3_base_patch16_224.fb_in1k

Everything goes to runs/NAME. The same command again goes on where the last one stopped, bit for bit.
"""

from ffcv_ops.errors import BadInput, exits_cleanly, interruptible

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

from ffcv_ops import draws, native
from ffcv_ops.loader import eval_loader, train_loader
from training import (
    compiling,
    depth,
    distributed,
    guards,
    judge,
    keys,
    micro,
    model,
    optim,
    parallel,
    predictions,
    progress,
    recipe,
    report,
    schedule,
    stop,
    summary,
    weights,
)
from training.datasets import open_sets, planned_sets
from training.evaluate import Result, evaluate
from training.log import Log, Meter
from training.recipe import Run, Stage
from training.state import Means, RunFolder, State, restore
from training.step import Job, gradients, random_batch, update
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


def read(argv=None) -> tuple[argparse.Namespace, Run, dict]:
    """The options, the run, and the keys of --eval that are given."""
    sections = recipe.SECTIONS | {"eval": judge.Asked}
    options, given = keys.parse(__doc__, sections, recipe.base_values(), OPTIONS, argv)
    of_eval = keys.of_section(given, "eval")
    run = recipe.load(options.cfg, {path: text for path, text in given.items() if not path.startswith("eval.")})
    if of_eval and not options.eval_only:
        raise BadInput(f"--eval.{next(iter(of_eval))} belongs to --eval-only")
    if (options.measure or options.at_throughput) and not options.print:
        raise BadInput("--measure and --at-throughput belong to --print")
    return options, run, of_eval


@exits_cleanly
def main(argv=None) -> signal.Signals | None:
    """Returns the signal that stopped the run before its end, or None."""
    options, run, of_eval = read(argv)
    if options.print:
        print_plan(run, at_throughput=options.at_throughput, measured=options.measure)
        return None
    ranks = distributed.join(run.speed.device, patience=run.watchdog)
    try:
        forward = precision(run.speed.precision, ranks.device)
        if options.eval_only:
            asked = keys.build(judge.Asked, of_eval, "--eval.")
            with Watchdog(run.watchdog, ranks) as watch:
                judge.judge(Job(run, ranks, {}, forward), options.init, asked, watch)
            return None
        first = stage_number(run, options.start_at) if options.start_at else 0
        job = Job(run, ranks, open_sets(run, first=RunFolder(run).first_stage(run, first)), forward)
        with Watchdog(run.watchdog, ranks) as watch, stop.on_request() as asked:
            train_run(job, init=options.init, first=first, asked=asked, watch=watch)
        return None
    except stop.Stopped as stopped:
        return stopped.args[0]
    except KeyboardInterrupt:
        if options.eval_only or not ranks.first:
            raise
        raise KeyboardInterrupt(RunFolder(run).kept()) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(f"{error}; make room, the same command goes on from the last checkpoint") from error
    finally:
        distributed.leave()


def print_plan(run: Run, *, at_throughput: float | None, measured: bool) -> None:
    """The resolved recipe and, as comments, so that the whole is a recipe, what each stage is and costs."""
    sets, speeds = planned_sets(run), [at_throughput] if at_throughput else []
    if measured:
        ranks = distributed.join(run.speed.device)
        speeds = measure(Job(run, ranks, sets, precision(run.speed.precision, ranks.device)))
    print(recipe.render(run) + summary.describe(run, sets, images_per_s=speeds), end="")


def precision(word: str, device: torch.device) -> torch.dtype:
    """The type of the forward pass's matrix products."""
    if word == "auto":
        word = "fp32" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if word == "fp16" and device.type == "cpu":
        raise BadInput("speed.precision fp16 needs a GPU (its gradients are scaled); use fp32 or bf16 on a CPU")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[word]


def train_run(job: Job, *, init: str | None, first: int, asked, watch: Watchdog) -> None:
    """All stages from number `first` on, or what is left of them, until `asked()` to stop."""
    run, ranks = job.run, job.ranks
    folder = RunFolder(run)
    if (first or run.stages[0].head != "keep") and not init and not folder.begun():
        raise BadInput(f"stage {run.stages[first].name} starts from weights: it needs --init, {weights.SOURCES}")
    with ExitStack() as ending:
        if ranks.first:
            ending.enter_context(folder.alone())
            folder.prepare(run)
        distributed.wait_for_all()
        saved = folder.load(first=ranks.first)
        if saved and saved["stage"] < first:
            names = [stage.name for stage in run.stages]
            raise BadInput(f"{folder.path} stands at stage {names[saved['stage']]}, before --start-at {names[first]};"
                           " go on without --start-at, or give this run a folder with --log.name")  # fmt: skip
        parts = progress.plan(run, job.sets, folder.first_stage(run, first)) if ranks.first else []
        if saved and ranks.first:
            stage = run.stages[saved["stage"]]
            folder.check_order(saved, stage.name, job.sets[stage.data].train.samples)
        log = Log(folder, run, parts, first=ranks.first, world=ranks.world, saved=saved)
        ending.callback(log.close)
        log.say(native.describe())
        given = weights.read(init) if init and not saved else None
        step = saved["step"] if saved else 0
        for number in range(saved["stage"] if saved else first, len(run.stages)):
            state, so_far, given = begin_stage(job, number, given, step, say=log.say), Means(), None
            if saved:
                so_far = restore(state, saved)
                after = f"after epoch {state.epoch}" + (f" and {state.batch} steps" if state.batch else "")
                log.say(f"{folder.path}: going on at stage {run.stages[number].name}, {after}")
                saved = None
            if state.epoch < run.stages[number].epochs:
                train_stage(job, state, folder, log, so_far=so_far, asked=asked, watch=watch)
            step = state.step
            if number + 1 < len(run.stages):
                given = weights_for(run.stages[number + 1], state)
        log.close_bar()
        folder.save_weights("model", state.model, first=ranks.first)
        if state.average is not None:
            folder.save_weights("model_ema", state.average, first=ranks.first)
        if ranks.first:
            log.say(report.write(folder.path))


def weights_for(following: Stage, before: State) -> dict:
    """What a stage starts from, on the host, so that the device is not left with two models."""
    source = before.average if following.start == "ema" else before.model
    return {name: tensor.cpu() for name, tensor in distributed.whole(source.state_dict(), first=True).items()}


def stage_number(run: Run, name: str) -> int:
    """The place of a stage in the recipe."""
    names = [stage.name for stage in run.stages]
    if name not in names:
        raise BadInput(f"--start-at {name}: the stages of {run.source} are {', '.join(names)}")
    return names.index(name)


def begin_stage(job: Job, number: int, given: dict | None, step: int, *, say=print) -> State:
    """A fresh model at the stage's resolution, grown from the weights `given` if there are any, and a new optimizer."""
    stage, device = job.run.stages[number], job.ranks.device
    torch.manual_seed(job.run.seed)
    network = model.create(
        job.run.model.name,
        resolution=stage.resolution,
        classes=job.sets[stage.data].classes,
        drop_path=stage.drop_path,
        layer_scale=job.run.model.layer_scale,
        blur_pool=job.run.model.blur_pool,
    )
    if given is not None:
        rows = rows_of_head(job, number, given, network) if stage.head == "map" else None
        if rows is not None:
            say(f"stage {stage.name}: {sum(row >= 0 for row in rows)} of {len(rows)} classes keep their weights")
        model.load(network, model.grow(given, network, head=stage.head, rows=rows))
    if job.run.speed.drop_path == "subset" and not depth.has_subsets(network):
        raise BadInput(f"speed.drop_path subset is for deit3 models; for {job.run.model.name} use exact")
    if model.tokens(network) is not None and (stage.ramp or stage.eval_side != stage.resolution):
        fault = f"{job.run.model.name} has one resolution; leave out ramp and eval_resolution"
        raise BadInput(f"stage {stage.name}: {fault}")
    network.to(device)
    if job.run.speed.channels_last and model.tokens(network) is None:
        network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval().requires_grad_(False) if stage.ema is not None else None
    scaler = torch.amp.GradScaler(device.type, enabled=job.precision == torch.float16)
    return State(number, 0, step, network, average, optim.build(network, stage), scaler)


def rows_of_head(job: Job, number: int, given: dict, network: nn.Module) -> list[int]:
    """For each class of the stage the row of the head of `given` that stands for it, -1 for none."""
    data = job.sets[job.run.stages[number].data]
    before = job.sets.get(job.run.stages[number - 1].data) if number else None
    return weights.matching_rows(
        model.head_size(given, network), data.classes,
        old_names=before.train.class_names if before else None, new_names=data.train.class_names,
    )  # fmt: skip


def train_stage(job: Job, state: State, folder: RunFolder, log: Log, *, so_far: Means, asked, watch: Watchdog) -> None:
    """The epochs of one stage: train, evaluate, save. `so_far`: of the epoch that is under way."""
    run, ranks = job.run, job.ranks
    stage = run.stages[state.stage]
    loading = {
        "rank": ranks.rank, "world": ranks.world, "workers": run.data.workers, "device": ranks.device,
        "cache": run.data.cache,
    }  # fmt: skip
    seed = stage_seed(run.seed, state.stage)
    train, val, _ = job.sets[stage.data]
    pages = run.data.shuffle_pages
    bad = run.data.bad_limit if run.data.on_bad_sample == "replace" else None
    batches = train_loader(train.path, train.samples, stage, seed=seed, shuffle_pages=pages, bad_limit=bad, **loading)
    piece = micro.find(job, state, stage)
    seen = micro.in_evaluation(run.speed.micro_batch, piece)
    val_batches = eval_loader(val.path, val.samples, stage, batch=seen, **loading)
    batches = watch.watched(batches, f"stage {stage.name}")
    val_batches = watch.watched(val_batches, f"evaluating in stage {stage.name}")
    steps = len(batches)
    if run.speed.compile:
        compiling.compile_stage(job, state, stage, piece, say=log.say)
    forward = parallel.distribute(state, stage, ranks, run.speed.parallel, accumulates=piece < job.share(stage))
    log.begin_stage(stage, done=steps * state.epoch + state.batch)
    meter, spikes = Meter(ranks.device), guards.Spikes()
    while state.epoch < stage.epochs:
        means = so_far
        shown = replace(stage, resolution=schedule.resolution(stage, state.epoch))
        batches.decoder.resolution = shown.resolution
        readings = train_epoch(
            job, state, shown, forward, batches, seed=seed, piece=piece, meter=meter, due=folder.due, log=log,
            asked=asked,
        )  # fmt: skip
        with guards.explained_memory(job, stage, piece):
            for reading in readings:
                means += reading.means
                guards.heed(job, state, stage, folder, log, reading, means, spikes)
        so_far = Means()
        state.epoch, state.batch = state.epoch + 1, 0
        lr, last = state.optimizer.param_groups[0]["lr"], state.epoch == stage.epochs
        row = {"stage": stage.name, "epoch": state.epoch, "step": state.step, "lr": lr, **means.row()}
        row["bad_samples"] = distributed.total_over_ranks(batches.bad.replaced, ranks.device)
        if row["bad_samples"]:
            log.say(f"{train.path}: bad samples replaced: {row['bad_samples']}; in this rank {batches.bad.worst()}")
        if state.epoch % run.log.eval_every == 0 or last:
            networks = [state.model] if state.average is None else [state.model, state.average]
            with guards.explained_evaluation(job, stage, seen, piece=piece):
                result, *averaged = evaluated(job, stage, networks, val_batches)
            row |= {"top1": result.top1, "top5": result.top5, "val_loss": result.loss, "val_images": result.images}
            for its in averaged:
                row |= {"ema_top1": its.top1, "ema_top5": its.top5}
        log.row(kind="epoch", epochs=stage.epochs, resolution=shown.resolution, **row)
        if last:
            folder.save_weights(stage.name, state.model, first=ranks.first)
            log.end_stage(f"top-1 {100 * result.top1:.2f} %")
            with guards.explained_evaluation(job, stage, seen, piece=piece), evaluating(job, state.model):
                made = predictions.collect(job, stage, state.model, val_batches.epoch(0))
            if ranks.first:
                predictions.save(folder.path / predictions.FILE, made, say=log.say)
        guards.save(job, state, stage, folder, log, so_far, needed=last)
        if ranks.first:
            report.refresh(folder.path, say=log.say)


def train_epoch(
    job: Job, state: State, stage: Stage, forward, batches, *, seed, piece, meter: Meter, due, log: Log, asked
):
    """The optimizer steps of one epoch, or what is left of it. Yields a `Reading` at each log point: only there does
    the host wait for the device. One comes every `log.every` steps, at the epoch's end, and when all ranks are `asked`
    to stop."""
    run = job.run
    state.model.train()
    meter.begin()
    waiting = time.perf_counter()
    for images, labels in batches.epoch(state.epoch, state.batch):
        waited = time.perf_counter() - waiting
        in_stage = state.epoch * len(batches) + state.batch
        lr = schedule.of_stage(stage, in_stage, len(batches))
        optim.set_lr(state.optimizer, lr)
        loss = gradients(job, state, stage, forward, images, labels, step=in_stage, seed=seed, piece=piece)
        norm, bad = update(job, state, stage, loss)
        state.batch += 1
        meter.add(loss, norm, bad, stage.batch, waited)
        stopping, regular, last = asked(), state.batch % run.log.every == 0, state.batch == len(batches)
        if stopping or regular or last:
            wanted = job.ranks.first and not last and due()  # the epoch's end saves anyway
            reading = meter.read(stop=stopping, due=wanted)
            row = reading.means.row()
            if regular:
                row["bad_samples"] = distributed.total_over_ranks(batches.bad.replaced, job.ranks.device)
                log.row(kind="step", stage=stage.name, epoch=state.epoch, step=state.step, lr=lr, **row)
            log.advance(reading.means.steps, state.epoch + 1, row)
            yield reading
            meter.begin()
        waiting = time.perf_counter()


@contextmanager
def evaluating(job: Job, *networks: nn.Module):
    """Evaluation's batches have other shapes than training's, so nothing is compiled for them."""
    eager = torch.compiler.set_stance("force_eager") if job.run.speed.compile else nullcontext()
    with ExitStack() as whole, eager:
        for network in networks:
            whole.enter_context(parallel.gathered(network))
        yield


def evaluated(job: Job, stage: Stage, networks: Sequence[nn.Module], batches) -> list[Result]:
    """Each network on all of the validation set, which is read once."""
    with evaluating(job, *networks):
        return evaluate(
            networks, batches.epoch(0), device=job.ranks.device, autocast=job.autocast, flip=stage.eval_flip
        )


def stage_seed(seed: int, number: int) -> int:
    """A seed for each stage, so that a fine-tune does not show the crops of the pre-training again (63 bits)."""
    return int(draws.bits(seed, number, draws.STAGE)) >> 1


def measure(job: Job) -> list[float]:
    """Training images per second of this device in each stage, without a loader."""
    speeds = []
    for number, stage in enumerate(job.run.stages):
        state = begin_stage(job, number, None, 0)
        piece = micro.find(job, state, stage)
        batch, forward = random_batch(job, stage, piece), state.model.train()
        if job.run.speed.compile:
            compiling.compile_stage(job, state, stage, piece, say=lambda text: print(f"# {text}"))

        def step(state=state, stage=stage, forward=forward, batch=batch, piece=piece):
            loss = gradients(job, state, stage, forward, *batch, step=state.step, seed=0, piece=piece)
            update(job, state, stage, loss)

        speeds.append(summary.measured(step, piece, job.ranks.device))
    return speeds


if __name__ == "__main__":
    main()
