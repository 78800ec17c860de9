"""Trains DeiT III vision transformers (and what they are compared with) from .beton files, as a recipe says.

    python train_imagenet.py --cfg recipes/demo.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --data.train=train.beton --data.val=val.beton
    torchrun --nproc-per-node=8 train_imagenet.py --cfg recipes/vit_s_400ep.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --print
    python train_imagenet.py --cfg recipes/demo.yaml --eval-only --init=runs/demo

Everything goes to runs/NAME. The same command again goes on where the last one stopped, bit for bit.
"""

import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ffcv_ops import draws
from ffcv_ops.errors import BadInput, exits_cleanly
from ffcv_ops.fields import Beton, describe
from ffcv_ops.loader import eval_loader, train_loader
from training import depth, distributed, keys, losses, mixing, model, optim, recipe, report, schedule
from training.distributed import Ranks
from training.evaluate import Result, evaluate
from training.log import Log, Meter, finite
from training.recipe import Run, Stage
from training.state import RunFolder, State, read_weights, restore

OPTIONS = (
    ("--cfg", {"required": True, "metavar": "FILE", "help": "the recipe"}),
    ("--print", {"action": "store_true", "help": "show the resolved recipe and stop"}),
    ("--init", {"metavar": "FILE", "help": "weights to start from: .safetensors, a checkpoint or a run's folder"}),
    ("--start-at", {"metavar": "STAGE", "help": "leave out the stages before this one (with --init)"}),
    ("--eval-only", {"action": "store_true", "help": "evaluate --init at the last stage's resolution and stop"}),
)


class Job(NamedTuple):
    """What stays the same during a run."""

    run: Run
    ranks: Ranks
    train: Beton
    val: Beton
    classes: int
    precision: torch.dtype


@exits_cleanly
def main(argv=None) -> None:
    options, overrides = keys.parse(__doc__, recipe.SECTIONS, recipe.base_values(), OPTIONS, argv)
    run = recipe.load(options.cfg, overrides)
    if options.print:
        print(recipe.render(run), end="")
        return
    ranks = distributed.join(run.speed.device)
    try:
        train, val = describe(run.data.train), describe(run.data.val)
        classes = max(train.classes, val.classes) if run.model.classes == "auto" else run.model.classes
        if classes < max(train.classes, val.classes):
            raise BadInput(f"model.classes is {classes}, but the labels go up to {max(train.classes, val.classes) - 1}")
        job = Job(run, ranks, train, val, classes, precision(run.speed.precision, ranks.device))
        if options.eval_only:
            evaluate_weights(job, options.init)
        else:
            train_run(job, init=options.init, start_at=options.start_at)
    finally:
        distributed.leave()


def precision(word: str, device: torch.device) -> torch.dtype:
    """The type of the forward pass's matrix products."""
    if word == "auto":
        word = "fp32" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if word == "fp16" and device.type == "cpu":
        raise BadInput("speed.precision fp16 needs a GPU (its gradients are scaled); use fp32 or bf16 on a CPU")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[word]


def train_run(job: Job, *, init: str | None, start_at: str | None) -> None:
    """All stages, or what is left of them."""
    run, ranks = job.run, job.ranks
    first = stage_number(run, start_at) if start_at else 0
    if first and not init:
        raise BadInput(f"--start-at {start_at} needs --init: the weights that the stages before it would have made")
    folder = RunFolder(run)
    if ranks.first:
        folder.prepare(run)
    distributed.wait_for_all()
    saved = folder.load()
    log = Log(folder, run, first=ranks.first, world=ranks.world, step=saved["step"] if saved else -1)
    try:
        weights = read_weights(init) if init and not saved else None
        step = saved["step"] if saved else 0
        for number in range(saved["stage"] if saved else first, len(run.stages)):
            state = begin_stage(job, number, weights, step)
            if saved:
                restore(state, saved)
                log.say(f"{folder.path}: going on at stage {run.stages[number].name}, after epoch {state.epoch}")
                saved = None
            if state.epoch < run.stages[number].epochs:
                train_stage(job, state, folder, log)
            step = state.step
            following = run.stages[number + 1] if number + 1 < len(run.stages) else None
            source = state.average.module if following and following.start == "ema" else state.model
            weights = source.state_dict()
        log.close_bar()
        if ranks.first:
            folder.save_weights("model", state.model)
            log.say(report.write(folder, run))
    finally:
        log.close()


def stage_number(run: Run, name: str) -> int:
    """The place of a stage in the recipe."""
    names = [stage.name for stage in run.stages]
    if name not in names:
        raise BadInput(f"--start-at {name}: the stages of {run.source} are {', '.join(names)}")
    return names.index(name)


def begin_stage(job: Job, number: int, weights: dict | None, step: int) -> State:
    """A fresh model at the stage's resolution, grown from `weights` if there are any, and a fresh optimizer."""
    stage, device = job.run.stages[number], job.ranks.device
    torch.manual_seed(job.run.seed)
    network = model.create(
        job.run.model.name,
        resolution=stage.resolution,
        classes=job.classes,
        drop_path=stage.drop_path,
        layer_scale=job.run.model.layer_scale,
    )
    if weights is not None:
        model.load(network, model.grow(weights, network))
    network.to(device)
    average = ModelEmaV3(network, decay=stage.ema, foreach=True) if stage.ema is not None else None
    scaler = torch.amp.GradScaler(device.type, enabled=job.precision == torch.float16)
    return State(number, 0, step, network, average, optim.build(network, stage), scaler)


def train_stage(job: Job, state: State, folder: RunFolder, log: Log) -> None:
    """The epochs of one stage: train, evaluate, save."""
    run, ranks = job.run, job.ranks
    stage = run.stages[state.stage]
    loading = {
        "rank": ranks.rank, "world": ranks.world, "workers": run.data.workers, "device": ranks.device,
        "cache": run.data.cache,
    }  # fmt: skip
    seed = stage_seed(run.seed, state.stage)
    batches = train_loader(job.train.path, job.train.samples, stage, seed=seed, **loading)
    share = stage.batch // ranks.world
    micro = micro_batch(run.speed.micro_batch, share, stage)
    val_batches = eval_loader(job.val.path, job.val.samples, stage, batch=max(micro, 64), **loading)
    steps = len(batches)
    network = torch.compile(state.model) if run.speed.compile else state.model
    forward = parallel(network, ranks, accumulates=micro < share)
    log.begin_stage(stage, steps=steps * stage.epochs, done=steps * state.epoch)
    for epoch in range(state.epoch, stage.epochs):
        row = train_epoch(job, state, stage, forward, batches, epoch=epoch, seed=seed, micro=micro, log=log)
        state.epoch = epoch + 1
        if state.epoch % run.log.eval_every == 0 or state.epoch == stage.epochs:
            result = evaluate(state.model, val_batches.epoch(0), device=ranks.device, autocast=autocast_of(job))
            row |= {"top1": result.top1, "top5": result.top5, "val_loss": result.loss, "val_images": result.images}
        if state.average is not None and state.epoch == stage.epochs:
            averaged = evaluate(state.average.module, val_batches.epoch(0), device=ranks.device, autocast=autocast_of(job))
            row |= {"ema_top1": averaged.top1, "ema_top5": averaged.top5}
        log.row(kind="epoch", epochs=stage.epochs, resolution=stage.resolution, **row)
        if ranks.first:
            if state.epoch == stage.epochs:
                folder.save_weights(stage.name, state.model)
            folder.save(state)


def train_epoch(job: Job, state: State, stage: Stage, forward, batches, *, epoch, seed, micro, log: Log) -> dict:
    """One epoch of optimizer steps. Returns what its row in the log says.

    A step takes this rank's share of the global batch in pieces of `micro` samples. All random numbers are keyed by
    the step and the sample's place in the global batch, so neither ranks nor pieces change what is computed.
    """
    run, ranks, network = job.run, job.ranks, state.model
    autocast, loss_of = autocast_of(job), losses.BY_NAME[stage.loss]
    stochastic = depth.branches(network)
    share = stage.batch // ranks.world
    offset = ranks.rank * share
    network.train()
    whole, recent = Meter(ranks.device), Meter(ranks.device)
    waiting = time.perf_counter()
    for k, (images, labels) in enumerate(batches.epoch(epoch)):
        waited = time.perf_counter() - waiting
        in_stage = epoch * len(batches) + k
        lr = learning_rate(stage, in_stage, len(batches))
        optim.set_lr(state.optimizer, lr)
        loss = torch.zeros((), device=ranks.device)
        for start in range(0, share, micro):
            piece = slice(start, start + micro)
            depth.set_masks(
                stochastic, seed=seed, step=in_stage, first=offset + start, samples=micro, device=ranks.device
            )
            rows = mixing.plan(seed, in_stage, stage, offset=offset + start, count=micro)
            inputs, targets = mixing.mix(
                images[piece],
                labels[piece],
                None if rows is None else rows.to(ranks.device, non_blocking=True),
                classes=job.classes,
                smoothing=stage.smoothing,
            )
            if not run.speed.channels_last:
                inputs = inputs.contiguous()
            last = start + micro == share
            with nullcontext() if last or ranks.world == 1 else forward.no_sync():
                with autocast():
                    part = loss_of(forward(inputs), targets) * (micro / share)
                state.scaler.scale(part).backward()
            loss += part.detach()
        norm = optim.update(state.optimizer, clip_norm=stage.clip_norm, scaler=state.scaler)
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update(network)
        state.step += 1
        for meter in (whole, recent):
            meter.add(loss, norm, stage.batch, waited)
        if recent.steps == run.log.every:
            read = check_finite(recent.read(), stage, state)
            log.row(kind="step", stage=stage.name, epoch=epoch, step=state.step, lr=lr, **read)
            log.advance(recent.steps, f"epoch {epoch + 1}/{stage.epochs}  loss {read['loss']:.4f}  "
                        f"{read['images_per_s']:.0f} images/s  waited {100 * read['wait']:.0f} %")  # fmt: skip
            recent = Meter(ranks.device)
        waiting = time.perf_counter()
    log.advance(recent.steps, f"epoch {epoch + 1}/{stage.epochs}")
    read = check_finite(whole.read(), stage, state)
    return {"stage": stage.name, "epoch": epoch + 1, "step": state.step, "lr": lr, **read}


def learning_rate(stage: Stage, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step of this stage."""
    names = ("epochs", "lr", "min_lr", "warmup_epochs", "warmup_lr", "schedule")
    return schedule.learning_rate(
        step, steps_per_epoch=steps_per_epoch, **{name: getattr(stage, name) for name in names}
    )


def check_finite(values: dict, stage: Stage, state: State) -> dict:
    """Ends the run when loss or gradient are no longer numbers; the last epoch's checkpoint stays."""
    if not finite(values):
        raise BadInput(
            f"stage {stage.name}, step {state.step}: loss {values['loss']}, gradient norm {values['grad_norm']};"
            " stopped. The checkpoint of the last whole epoch is kept; try a lower lr, or precision bf16 or fp32"
        )
    return values


def stage_seed(seed: int, number: int) -> int:
    """A seed for each stage, so that a fine-tune does not show the crops of the pre-training again (63 bits)."""
    return int(draws.bits(seed, number, draws.STAGE)) >> 1


def micro_batch(word: int | str, share: int, stage: Stage) -> int:
    """Samples per forward pass: `word`, or for auto the largest even divisor of this rank's share up to 256."""
    if word == "auto":
        fits = [n for n in range(1, min(share, 256) + 1) if share % n == 0 and (n % 2 == 0 or not stage.mixing)]
        return max(fits)
    if share % word:
        raise BadInput(f"stage {stage.name}: {share} samples per process are no multiple of speed.micro_batch {word}")
    return word


def parallel(network: nn.Module, ranks: Ranks, *, accumulates: bool) -> nn.Module:
    """The model as the training loop calls it: gradients averaged over the ranks, if there are several.

    DDP cannot take the graph as static when the first backward pass is one without a sum over the ranks.
    """
    if ranks.world == 1:
        return network
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        network, device_ids=devices, gradient_as_bucket_view=True, static_graph=not accumulates
    )


def autocast_of(job: Job):
    """A function that gives the context of a forward pass."""
    enabled = job.precision != torch.float32
    return lambda: torch.autocast(job.ranks.device.type, dtype=job.precision if enabled else None, enabled=enabled)


def evaluate_weights(job: Job, init: str | None) -> Result:
    """Top-1 and top-5 of some weights on the validation data, at the last stage's resolution."""
    if init is None:
        raise BadInput("--eval-only needs --init: a .safetensors file, a checkpoint or a finished run's folder")
    state = begin_stage(job, len(job.run.stages) - 1, read_weights(init), 0)
    stage = job.run.stages[-1]
    batches = eval_loader(
        job.val.path, job.val.samples, stage, batch=64, rank=job.ranks.rank, world=job.ranks.world,
        workers=job.run.data.workers, device=job.ranks.device, cache=job.run.data.cache,
    )  # fmt: skip
    result = evaluate(state.model, batches.epoch(0), device=job.ranks.device, autocast=autocast_of(job))
    if job.ranks.first:
        print(
            f"{job.val.path}: top-1 {100 * result.top1:.3f} %  top-5 {100 * result.top5:.3f} %  loss {result.loss:.4f}"
            f"  ({result.images} images at {stage.resolution} px)"
        )
    return result


if __name__ == "__main__":
    main()
