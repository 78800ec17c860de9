"""Trains DeiT III vision transformers (and what they are compared with) from .beton files, as a recipe says.

    python train_imagenet.py --cfg recipes/demo.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --data.train=train.beton --data.val=val.beton
    torchrun --nproc-per-node=8 train_imagenet.py --cfg recipes/vit_s_400ep.yaml
    python train_imagenet.py --cfg recipes/vit_s_400ep.yaml --print --on=h200
    python train_imagenet.py --cfg recipes/demo.yaml --eval-only --init=runs/demo --eval.data=other.beton
    python train_imagenet.py --cfg recipes/transfer/cars.yaml --init=timm:deit3_base_patch16_224.fb_in1k

Everything goes to runs/NAME. The same command again goes on where the last one stopped (on a CPU bit for bit).

Read it bottom-up: `train_epoch` takes one optimizer step after the other, `train_stage` one epoch after the other,
`train_run` one stage (pre-training at a resolution, a fine-tune) after the other.
"""

import os

from config import train_command
from ffcv_ops.errors import UserError, exits_cleanly, interruptible

if __name__ == "__main__":  # --help, mistakes and --print are answered here: the imports below take seconds
    interruptible()
    options, recipe, _ = exits_cleanly(train_command.parse)(__doc__)
    if options.print and not options.measure and not options.init:
        from training.planning import estimate

        exits_cleanly(estimate.print_plan)(recipe, images_per_s=options.at_throughput, on=options.on)
        raise SystemExit
    if recipe.speed.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # FFCV takes streams and pinned memory of any GPU that torch sees

import errno
import math
import signal
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

import report
from config import schedule
from config.recipe import Recipe
from ffcv_ops.jpeg import native
from ffcv_ops.mixing import Mixing, mix_params
from ffcv_ops.warm_up import prepare_kernels
from training import distributed, optim, repeatable
from training.datasets import open_sets, planned_sets, remarks
from training.distillation import distilled_loss
from training.distributed import parallel, stop
from training.distributed.parallel import gradient_sync
from training.distributed.watchdog import Watchdog
from training.evaluation import predictions
from training.evaluation.accuracy import CountAccuracy
from training.evaluation.evaluate_only import evaluate_only
from training.evaluation.loop import evaluate
from training.loading import eval_loader, train_loader
from training.log_point import log_point, save_checkpoint
from training.logging.environment import commit
from training.logging.run_log import RunLog
from training.losses import loss_of
from training.memory import compiling, micro_batch, out_of_memory
from training.network import weights
from training.network.freezing import train_mode
from training.planning import estimate
from training.planning.throughput import throughput
from training.run import Run, precision
from training.saving import run_identity
from training.saving.run_folder import RunFolder
from training.stage import Stage, create_stage, next_start_weights
from training.step_stats import Meter, StepStats

# --- one optimizer step --------------------------------------------------------------------------------------------


def train_epoch(run: Run, stage: Stage) -> None:
    """The optimizer steps of one epoch, or what is left of it.

    Nothing here reads a value from the device, so the host runs ahead of it, except at log points: every `log.every`
    steps, at the epoch's end, and when the run is asked to stop.
    """
    config, loader, resolution = stage.config, stage.train_loader, stage.resolution
    train_mode(stage.model)
    stage.meter.begin()
    for images, labels in stage.meter.timed(loader.epoch(stage.epoch, stage.step_in_epoch, resolution=resolution)):
        lr = schedule.learning_rate(config, stage.step_in_stage, stage.steps_per_epoch)
        optim.set_lr(stage.optimizer, lr)

        statistics = optim.running_statistics(stage.model)  # of batch normalization; the forward pass changes them
        loss = forward_backward(run, stage, images, labels)

        # skip: 1.0 where the loss or the gradient is not finite, or a step before was not and the run is to stop. The
        # device decides, for all ranks alike: a rank that steps alone would have other weights from then on. A loss can
        # be infinite while its gradient is not.
        stage.scaler.unscale_(stage.optimizer)
        grad_norm = optim.gradient_norm(stage.optimizer)
        finite_loss = distributed.all_true(loss.isfinite())
        skip = (~(finite_loss & grad_norm.isfinite())).float()
        if stage.halted is not None:
            skip = torch.maximum(skip, stage.halted)

        # Clips and skips inside fused kernels; weights, moments, statistics and EMA stay where skip is 1.
        optim.restore_statistics(statistics, skip)
        optim.step(stage.optimizer, grad_norm, clip_norm=config.clip_norm, skip=skip, average=stage.average)
        stage.scaler.update()

        # bad: what is reported. GradScaler (fp16) expects gradients that overflow: there only the loss counts. With
        # on_nonfinite: stop, all steps after a bad one are skipped too, so that the next log point finds the weights
        # from before it.
        bad = (~finite_loss).float() if stage.scaler.is_enabled() else skip
        if run.recipe.on_nonfinite == "stop" and not stage.scaler.is_enabled():
            stage.halted = skip

        stage.step_in_epoch, stage.step = stage.step_in_epoch + 1, stage.step + 1
        stage.meter.add(loss, grad_norm, bad, config.batch)
        stopping = run.stop_requested()  # a signal came to one of the ranks; all hear of it after the same step
        if stopping or stage.step_in_epoch % run.recipe.log.every == 0 or stage.is_epoch_end:
            log_point(run, stage, lr=lr, stop=stopping)


def forward_backward(run: Run, stage: Stage, images: Tensor, labels: Tensor) -> Tensor:
    """Adds up the gradients of this rank's part of the batch. Returns its mean loss, a scalar on the device.

    images: uint8 (n, size, size, 3), labels: int64 (n,), on the device. All random numbers, of mixing and stochastic
    depth, are keyed by (seed, step, place in the global batch), so ranks and micro-batches change nothing.
    """
    config, device, size, n = stage.config, run.ranks.device, stage.micro_batch_size, len(images)
    total = torch.zeros((), device=device)
    for start in range(0, n, size):
        micro, place = slice(start, start + size), run.ranks.rank * n + start
        draws = {"seed": stage.seed, "step": stage.step_in_stage, "first": place, "samples": size}

        # Normalizes, makes soft targets, and mixes where mixup or CutMix is on. inputs: float32 (size, 3, height,
        # width), or on a GPU the patches of a ViT's images; targets: float32 (size, classes).
        how = Mixing(config.mixup, config.cutmix, config.mix_chunk)
        params = mix_params(how, resolution=images.shape[1], **draws)
        inputs, targets = stage.mix(
            images[micro],
            labels[micro],
            distributed.to_device(params, device),
            classes=run.datasets[config.data].classes,
            smoothing=config.smoothing,
            mean=run.recipe.model.mean,
            std=run.recipe.model.std,
            patches=stage.patches,
        )
        if not run.recipe.speed.channels_last:
            inputs = inputs.contiguous()  # mixing leaves them in the loader's order of memory

        stage.drop_path_masks.set(device=device, **draws)  # read by the model's drop-path modules
        if run.recipe.speed.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with gradient_sync(stage.network, on=start + size == n):  # averages over ranks, with the last micro-batch only
            with run.autocast():
                loss = stage_loss(stage, inputs, targets) * (size / n)  # size divides n
            stage.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def stage_loss(stage: Stage, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of a micro-batch, a scalar: by the labels, and with `distill` by the teacher too."""

    def of_labels(logits):
        return loss_of(stage.config, logits, targets, stage.class_weights)

    outputs = stage.network(inputs)
    if stage.teacher is None:
        return of_labels(outputs)
    return distilled_loss(outputs, stage.teacher, inputs, stage.config, of_labels)


# --- stages and epochs ---------------------------------------------------------------------------------------------


def train_stage(run: Run, stage: Stage) -> None:
    """The epochs of one stage, or what is left of them: train, evaluate, save."""
    config = stage.config
    stage.set_resolution(schedule.resolution(config, stage.epoch))
    prepare(run, stage)
    run.log.begin_stage(config, done=stage.step_in_stage)
    while not stage.may_end:
        if stage.set_resolution(schedule.resolution(config, stage.epoch)):
            stage.micro_batch_size = micro_batch.find(run, stage, forward_backward)
            compile_and_wrap(run, stage)
        with out_of_memory.explained_in_training(run, config, stage.micro_batch_size):
            train_epoch(run, stage)
        row = {"lr": max(group["lr"] for group in stage.optimizer.param_groups), **stage.epoch_stats.row()}
        stage.epoch, stage.step_in_epoch, stage.epoch_stats = stage.epoch + 1, 0, StepStats()
        row["bad_samples"] = count_bad_samples(run, stage)
        if stage.epoch % run.recipe.log.eval_every == 0 or stage.may_end:
            row |= evaluate_stage(run, stage, may_be_last=stage.may_end)
            keep_best(run, stage, row)
        is_last = stage.may_end
        if is_last and stage.epoch < config.epochs:
            row["ended_early"] = 1
            run.log.say(f"stage {config.name}: no better {config.best} since epoch {stage.best_epoch}; it ends here")
        run.log.row(
            kind="epoch", stage=config.name, epoch=stage.epoch, step=stage.step, epochs=config.epochs,
            resolution=stage.resolution, **row,
        )  # fmt: skip
        if is_last:
            run.folder.save_weights(config.name, stage.model, is_main=run.ranks.is_main)
            run.log.end_stage(f"top-1 {100 * row['top1']:.2f} %")
        save_checkpoint(run, stage, must_succeed=is_last)
        if run.ranks.is_main:
            report.refresh(run.folder.path, say=run.log.say)


def prepare(run: Run, stage: Stage) -> None:
    """What the stage needs on this machine: micro-batch, loaders, compiled code, the model in DDP or sharded."""
    config, data = stage.config, run.recipe.data
    train, val, *_ = run.datasets[config.data]
    train_batches = train_loader(
        train.path, train.samples, config, seed=stage.seed, placement=run.placement, shuffle_pages=data.shuffle_pages,
        bad_limit=data.bad_limit if data.on_bad_sample == "replace" else None,
    )  # fmt: skip
    prepare_kernels(run.log.say, train_batches.decoder.params)  # or the first epoch would wait for the compiler
    stage.micro_batch_size = micro_batch.find(run, stage, forward_backward)  # before the loader takes its memory
    val_batches = eval_loader(val.path, val.samples, config, batch=eval_batch_size(run, stage), placement=run.placement)
    parallel.shard(run, stage)
    compile_and_wrap(run, stage)
    stage.train_loader = run.watchdog.watched(train_batches, f"stage {config.name}")
    stage.val_loader = run.watchdog.watched(val_batches, f"evaluating in stage {config.name}")
    stage.meter = Meter(run.ranks.device)


def compile_and_wrap(run: Run, stage: Stage) -> None:
    """For the model and the micro-batch as they are."""
    if run.recipe.speed.compile:
        compiling.compile_stage(run, stage, forward_backward, say=run.log.say)
    parallel.wrap(run, stage)


def eval_batch_size(run: Run, stage: Stage) -> int:
    return micro_batch.for_evaluation(run.recipe.speed.micro_batch, stage.micro_batch_size)


def count_bad_samples(run: Run, stage: Stage) -> int:
    """How many stored images of the epoch could not be decoded and were replaced, in all ranks; says so."""
    corrupt = stage.train_loader.corrupt_samples
    count = distributed.all_reduce_total(corrupt.replaced, run.ranks.device)
    if count:
        path = run.datasets[stage.config.data].train.path
        run.log.say(f"{path}: bad samples replaced: {count}; in this rank {corrupt.most_frequent()}")
    return count


def keep_best(run: Run, stage: Stage, row: dict) -> None:
    """Saves the weights of an epoch that is the stage's best so far, by the measure `stage.best` of its row."""
    measure = stage.config.best
    value = {"none": -math.inf, "val_loss": -row["val_loss"]}.get(measure, row.get(measure))
    if value > stage.best:
        stage.best, stage.best_epoch = value, stage.epoch
        network = stage.ema if measure == "ema_top1" else stage.model
        run.folder.save_weights(f"{stage.config.name}_best", network, is_main=run.ranks.is_main)


def evaluate_stage(run: Run, stage: Stage, *, may_be_last: bool) -> dict:
    """The columns of an epoch's row: of the model, and of its EMA where there is one. The images are read once. In the
    stage's last epoch the model's predictions are saved too, which the report shows, and a line judges the classes."""
    config = stage.config
    networks = [stage.model] if stage.ema is None else [stage.model, stage.ema]
    reducers = [[CountAccuracy(run.datasets[config.data].classes, run.ranks.device)] for _ in networks]
    if may_be_last:
        reducers[0].append(predictions.CollectPredictions(run, config))
    with evaluating(run, stage, *networks):
        results = evaluate(
            networks, reducers, stage.val_loader.epoch(0, resolution=stage.eval_side), autocast=run.autocast,
            flip=config.eval_flip, normalize=run.normalize,
        )  # fmt: skip
    if may_be_last and run.ranks.is_main:
        predictions.save(run.folder.path / predictions.FILE, results[0][1], say=run.log.say)
    result, *of_ema = (accuracy for accuracy, *_ in results)
    if may_be_last:
        names = run.datasets[config.data].val.class_names or ()
        run.log.say(f"stage {config.name}: {result.judgement(names)}")
    row = {"top1": result.top1, "top5": result.top5, "val_loss": result.loss, "val_images": result.images}
    row |= {"balanced": result.balanced, "majority": result.majority}
    return row | {name: value for ema in of_ema for name, value in (("ema_top1", ema.top1), ("ema_top5", ema.top5))}


@contextmanager
def evaluating(run: Run, stage: Stage, *networks):
    """Evaluation runs eagerly: its batches have other shapes than training's, and to compile for them costs more than
    it saves. Sharded networks are put together, as ranks may have different numbers of batches."""
    eager = torch.compiler.set_stance("force_eager") if run.recipe.speed.compile else nullcontext()
    batch, size = eval_batch_size(run, stage), stage.micro_batch_size
    explained = out_of_memory.explained_in_evaluation(run, stage.config, batch, micro_batch_size=size)
    with explained, eager, ExitStack() as stack:
        for network in networks:
            stack.enter_context(parallel.gathered(network))
        yield


# --- the run -------------------------------------------------------------------------------------------------------


def train_run(run: Run, *, init: str | None, start_at: int) -> None:
    """All stages from number `start_at` on, or what is left of them.

    Where a stage starts from, the first that is there:
      1. the newest whole checkpoint in the run's folder: its stage goes on, the ones before are done;
      2. the weights that the stage before ended with, or their EMA (stage.start);
      3. --init, for the first stage of a run that has no checkpoint;
      4. initial weights drawn from the seed.
    """
    stages = run.recipe.stages
    with ExitStack() as stack:
        run, checkpoint, start_weights = open_run(run, stack, init=init, start_at=start_at)
        step = checkpoint["step"] if checkpoint else 0
        for number in range(checkpoint["stage"] if checkpoint else start_at, len(stages)):
            stage = create_stage(run, number, start_weights, step)
            if checkpoint:
                stage.load_state_dict(checkpoint)
                after = f"epoch {stage.epoch}" + (f" and {stage.step_in_epoch} steps" if stage.step_in_epoch else "")
                run.log.say(f"{run.folder.path}: going on at stage {stage.config.name}, after {after}")
            start_weights = checkpoint = None  # free the host's memory
            if not stage.may_end:
                train_stage(run, stage)
            step = stage.step
            if number + 1 < len(stages):
                start_weights = next_start_weights(stages[number + 1], stage)

        run.log.close_bar()
        run.folder.save_weights("model", stage.model, is_main=run.ranks.is_main)
        if stage.ema is not None:
            run.folder.save_weights("model_ema", stage.ema, is_main=run.ranks.is_main)
        if run.ranks.is_main:
            run.log.say(report.write(run.folder.path))


def open_run(run: Run, stack: ExitStack, *, init: str | None, start_at: int) -> tuple[Run, dict | None, dict | None]:
    """Takes the run's folder and opens its log; both are given back when `stack` is closed.

    Returns the run with its log, the checkpoint to go on from, and the weights to start from: at most one of the two.
    UserError where the folder holds another run, or a stage needs weights and none are named.
    """
    recipe, folder, is_main = run.recipe, run.folder, run.ranks.is_main
    if (start_at or recipe.stages[0].head != "keep") and not init and not folder.begun():
        raise UserError(f"stage {recipe.stages[start_at].name} starts from weights: it needs --init, {weights.SOURCES}")
    if is_main:
        stack.enter_context(folder.alone())
        folder.check_recipe(recipe)
    distributed.barrier()
    checkpoint = folder.load(is_main=is_main)

    # What makes it the same run: nothing is written before this is held against the checkpoint.
    start_weights = weights.read(init, print if is_main else weights.silent) if init else None
    began_from = run_identity.init_of(init, start_weights) if init else None
    code = commit()
    identity = run_identity.identity_of(recipe, run.datasets, init=began_from, code=code)
    if checkpoint:
        check_resume(run, checkpoint, identity, start_at)
        start_weights, identity = None, checkpoint["run"]
    if is_main:
        folder.prepare(recipe, identity)

    first = folder.first_stage(recipe, start_at)
    plans = estimate.training_plan(recipe, run.datasets, first) if is_main else []
    log = RunLog(folder.path, recipe, plans, is_main=is_main, world=run.ranks.world, saved=checkpoint)
    stack.callback(log.close)
    native.use(recipe.data.decoder)
    for text in (native.describe(), *remarks(run.datasets)):
        log.say(text)
    if identity["code"] != code:
        log.say(f"{folder.path}: this run began with the code of {identity['code']}, and goes on with that of {code}")
    return replace(run, log=log, identity=identity), checkpoint, start_weights


def check_resume(run: Run, checkpoint: dict, identity: dict, start_at: int) -> None:
    """UserError where the checkpoint is not one to go on from."""
    if not run.ranks.is_main:
        return
    names = [stage.name for stage in run.recipe.stages]
    run.folder.check_checkpoint(checkpoint, run.recipe, identity)
    if checkpoint["stage"] < start_at:
        raise UserError(
            f"{run.folder.path} stands at stage {names[checkpoint['stage']]}, before --start-at {names[start_at]};"
            " go on without --start-at, or give this run a folder with --log.name"
        )
    run.folder.check_order(checkpoint)


# --- the command line ----------------------------------------------------------------------------------------------


@exits_cleanly
def main(argv=None) -> signal.Signals | None:
    """Returns the signal that stopped the run before its end, or None."""
    options, recipe, evaluation = train_command.parse(__doc__, argv, preprocessing)
    if recipe.speed.deterministic:
        repeatable.make_deterministic()
    if options.print:
        speeds = measure(recipe) if options.measure else options.at_throughput
        estimate.print_plan(recipe, images_per_s=speeds, on=options.on)
        return None
    ranks = distributed.init_process_group(recipe.speed.device, patience=recipe.watchdog)
    try:
        dtype = precision(recipe.speed.precision, ranks.device)
        if options.eval_only:
            with Watchdog(recipe.watchdog, ranks) as watchdog:
                evaluate_only(Run(recipe, ranks, {}, dtype), options.init, evaluation, watchdog)
            return None
        start_at = stage_number(recipe, options.start_at) if options.start_at else 0
        folder = RunFolder(recipe)
        datasets = open_sets(recipe, first=folder.first_stage(recipe, start_at))
        with Watchdog(recipe.watchdog, ranks) as watchdog, stop.on_request() as stop_requested, repeatable.explained():
            run = Run(recipe, ranks, datasets, dtype, folder, watchdog=watchdog, stop_requested=stop_requested)
            train_run(run, init=options.init, start_at=start_at)
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
        advice = "free some space and run the same command again: it goes on from the last checkpoint"
        raise UserError(f"{error}; {advice}") from error
    finally:
        distributed.destroy_process_group()


def preprocessing(recipe: Recipe, init: str | None) -> dict[str, dict]:
    """What `auto` stands for in a recipe: as the weights `init` were trained, or as the run that goes on was begun."""
    folder = RunFolder(recipe)
    return weights.preprocessing(init or folder.path) if init or folder.begun() else {}


def stage_number(recipe: Recipe, name: str) -> int:
    """The place of a stage in the recipe."""
    names = [stage.name for stage in recipe.stages]
    if name not in names:
        raise UserError(f"--start-at {name}: the stages of {recipe.source} are {', '.join(names)}")
    return names.index(name)


def measure(recipe: Recipe) -> list[float]:
    """Training images per second of this device in each stage, without a loader: one micro-batch a step."""
    ranks, speeds = distributed.init_process_group(recipe.speed.device), []
    run = Run(recipe, ranks, planned_sets(recipe), precision(recipe.speed.precision, ranks.device))
    for number, config in enumerate(run.recipe.stages):
        stage = create_stage(run, number)
        stage.set_resolution(config.resolution)
        stage.micro_batch_size = micro_batch.find(run, stage, forward_backward)
        stage.model.train()
        if run.recipe.speed.compile:
            compiling.compile_stage(run, stage, forward_backward, say=lambda text: print(f"# {text}"))
        batch = micro_batch.random_batch(run, config, stage.micro_batch_size)

        def step(stage=stage, batch=batch):
            loss = forward_backward(run, stage, *batch)
            norm = optim.gradient_norm(stage.optimizer)
            skip = (~(loss.isfinite() & norm.isfinite())).float()
            optim.step(stage.optimizer, norm, clip_norm=stage.config.clip_norm, skip=skip, average=stage.average)

        speeds.append(throughput(step, stage.micro_batch_size, run.ranks.device))
    return speeds


if __name__ == "__main__":
    stopped_by = main()
    raise SystemExit(128 + stopped_by if stopped_by else 0)  # 143 after SIGTERM, so that a cluster starts it again
