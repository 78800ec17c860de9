"""Trains DeiT III vision transformers (and what they are compared with) from .beton files, as a recipe says.

    python train_imagenet.py --cfg recipes/demo.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --data.train=train.beton --data.val=val.beton
    torchrun --nproc-per-node=8 train_imagenet.py --cfg recipes/vit_s_400ep.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --print --at-throughput=1500
    python train_imagenet.py --cfg recipes/demo.yaml --eval-only --init=runs/demo
    python train_imagenet.py --cfg recipes/transfer/cars.yaml --init=timm:deit3_base_patch16_224.fb_in1k

Everything goes to runs/NAME. The same command again goes on where the last one stopped, bit for bit.
"""

import time

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ffcv_ops import draws
from ffcv_ops.errors import BadInput, exits_cleanly
from ffcv_ops.loader import eval_loader, train_loader
from training import distributed, keys, micro, model, optim, recipe, report, schedule, summary, weights
from training.datasets import open_sets, planned_sets
from training.distributed import Ranks
from training.evaluate import Result, evaluate
from training.log import Log, Meter, finite
from training.recipe import Run, Stage
from training.state import RunFolder, State, restore
from training.step import Job, gradients, random_batch, update


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
    ("--eval-only", {"action": "store_true", "help": "evaluate --init at the last stage's resolution and stop"}),
)  # fmt: skip


@exits_cleanly
def main(argv=None) -> None:
    options, overrides = keys.parse(__doc__, recipe.SECTIONS, recipe.base_values(), OPTIONS, argv)
    run = recipe.load(options.cfg, overrides)
    if (options.measure or options.at_throughput) and not options.print:
        raise BadInput("--measure and --at-throughput belong to --print")
    if options.print:
        print_plan(run, at_throughput=options.at_throughput, measured=options.measure)
        return
    ranks = distributed.join(run.speed.device)
    try:
        first = stage_number(run, options.start_at) if options.start_at else 0
        sets = open_sets(run, first=len(run.stages) - 1 if options.eval_only else first)
        job = Job(run, ranks, sets, precision(run.speed.precision, ranks.device))
        if options.eval_only:
            evaluate_weights(job, options.init)
        else:
            train_run(job, init=options.init, first=first)
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


def train_run(job: Job, *, init: str | None, first: int) -> None:
    """All stages from number `first` on, or what is left of them."""
    run, ranks = job.run, job.ranks
    folder = RunFolder(run)
    if (first or run.stages[0].head != "keep") and not init and not folder.checkpoint.exists():
        raise BadInput(f"stage {run.stages[first].name} starts from weights: it needs --init, {weights.SOURCES}")
    if ranks.first:
        folder.prepare(run)
    distributed.wait_for_all()
    saved = folder.load()
    log = Log(folder, run, first=ranks.first, world=ranks.world, step=saved["step"] if saved else -1)
    try:
        given = weights.read(init) if init and not saved else None
        step = saved["step"] if saved else 0
        for number in range(saved["stage"] if saved else first, len(run.stages)):
            state = begin_stage(job, number, given, step, say=log.say)
            if saved:
                restore(state, saved)
                log.say(f"{folder.path}: going on at stage {run.stages[number].name}, after epoch {state.epoch}")
                saved = None
            if state.epoch < run.stages[number].epochs:
                train_stage(job, state, folder, log)
            step = state.step
            following = run.stages[number + 1] if number + 1 < len(run.stages) else None
            source = state.average.module if following and following.start == "ema" else state.model
            given = source.state_dict()
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


def begin_stage(job: Job, number: int, given: dict | None, step: int, *, say=print, head: str | None = None) -> State:
    """A fresh model at the stage's resolution, grown from the weights `given` if there are any, and a fresh optimizer.

    `head`, if not None, stands in for the stage's: what is evaluated keeps its own.
    """
    stage, device = job.run.stages[number], job.ranks.device
    torch.manual_seed(job.run.seed)
    network = model.create(
        job.run.model.name,
        resolution=stage.resolution,
        classes=job.sets[stage.data].classes,
        drop_path=stage.drop_path,
        layer_scale=job.run.model.layer_scale,
    )
    if given is not None:
        head = head or stage.head
        rows = rows_of_head(job, number, given, network) if head == "map" else None
        if rows is not None:
            say(f"stage {stage.name}: {sum(row >= 0 for row in rows)} of {len(rows)} classes keep their weights")
        model.load(network, model.grow(given, network, head=head, rows=rows))
    network.to(device)
    average = ModelEmaV3(network, decay=stage.ema, foreach=True) if stage.ema is not None else None
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


def train_stage(job: Job, state: State, folder: RunFolder, log: Log) -> None:
    """The epochs of one stage: train, evaluate, save."""
    run, ranks = job.run, job.ranks
    stage = run.stages[state.stage]
    loading = {
        "rank": ranks.rank, "world": ranks.world, "workers": run.data.workers, "device": ranks.device,
        "cache": run.data.cache,
    }  # fmt: skip
    seed = stage_seed(run.seed, state.stage)
    train, val, _ = job.sets[stage.data]
    pages = run.data.shuffle_pages
    batches = train_loader(train.path, train.samples, stage, seed=seed, shuffle_pages=pages, **loading)
    piece = micro.find(job, state, stage)
    val_batches = eval_loader(val.path, val.samples, stage, batch=max(piece, 64), **loading)
    steps = len(batches)
    forward = parallel(compiled(run, state.model), ranks, accumulates=piece < job.share(stage))
    log.begin_stage(stage, steps=steps * stage.epochs, done=steps * state.epoch)
    for epoch in range(state.epoch, stage.epochs):
        row = train_epoch(job, state, stage, forward, batches, epoch=epoch, seed=seed, piece=piece, log=log)
        state.epoch = epoch + 1
        if state.epoch % run.log.eval_every == 0 or state.epoch == stage.epochs:
            result = evaluate(state.model, val_batches.epoch(0), device=ranks.device, autocast=job.autocast)
            row |= {"top1": result.top1, "top5": result.top5, "val_loss": result.loss, "val_images": result.images}
        if state.average is not None and state.epoch == stage.epochs:
            averaged = evaluate(state.average.module, val_batches.epoch(0), device=ranks.device, autocast=job.autocast)
            row |= {"ema_top1": averaged.top1, "ema_top5": averaged.top5}
        log.row(kind="epoch", epochs=stage.epochs, resolution=stage.resolution, **row)
        if ranks.first:
            if state.epoch == stage.epochs:
                folder.save_weights(stage.name, state.model)
            folder.save(state)


def train_epoch(job: Job, state: State, stage: Stage, forward, batches, *, epoch, seed, piece, log: Log) -> dict:
    """One epoch of optimizer steps. Returns what its row in the log says."""
    run, ranks = job.run, job.ranks
    state.model.train()
    whole, recent = Meter(ranks.device), Meter(ranks.device)
    waiting = time.perf_counter()
    for k, (images, labels) in enumerate(batches.epoch(epoch)):
        waited = time.perf_counter() - waiting
        in_stage = epoch * len(batches) + k
        lr = schedule.of_stage(stage, in_stage, len(batches))
        optim.set_lr(state.optimizer, lr)
        loss = gradients(job, state, stage, forward, images, labels, step=in_stage, seed=seed, piece=piece)
        norm = update(state, stage)
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


def measure(job: Job) -> list[float]:
    """Training images per second of this device in each stage, without a loader."""
    speeds = []
    for number, stage in enumerate(job.run.stages):
        state = begin_stage(job, number, None, 0)
        piece = micro.find(job, state, stage)
        batch, forward = random_batch(job, stage, piece), compiled(job.run, state.model.train())

        def step(state=state, stage=stage, forward=forward, batch=batch, piece=piece):
            gradients(job, state, stage, forward, *batch, step=state.step, seed=0, piece=piece)
            update(state, stage)

        speeds.append(summary.measured(step, piece, job.ranks.device))
    return speeds


def compiled(run: Run, network: nn.Module) -> nn.Module:
    """The model, compiled if the run says so."""
    return torch.compile(network) if run.speed.compile else network


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


def evaluate_weights(job: Job, init: str | None) -> Result:
    """Top-1 and top-5 of some weights on the validation data, at the last stage's resolution."""
    if init is None:
        raise BadInput(f"--eval-only needs --init: {weights.SOURCES}")
    state = begin_stage(job, len(job.run.stages) - 1, weights.read(init), 0, head="keep")
    stage = job.run.stages[-1]
    val = job.sets[stage.data].val
    batches = eval_loader(
        val.path, val.samples, stage, batch=64, rank=job.ranks.rank, world=job.ranks.world,
        workers=job.run.data.workers, device=job.ranks.device, cache=job.run.data.cache,
    )  # fmt: skip
    result = evaluate(state.model, batches.epoch(0), device=job.ranks.device, autocast=job.autocast)
    if job.ranks.first:
        print(
            f"{val.path}: top-1 {100 * result.top1:.3f} %  top-5 {100 * result.top5:.3f} %  loss {result.loss:.4f}"
            f"  ({result.images} images at {stage.resolution} px)"
        )
    return result


if __name__ == "__main__":
    main()
