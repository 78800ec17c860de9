"""What --eval-only does: weights -> top-1 and top-5 on data sets, as a table, in evaluations.json and by class."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config.schema import EvalConfig
from ffcv_ops.errors import UserError, writing
from ffcv_ops.storage.index import describe
from ffcv_ops.storage.info import DatasetInfo
from training.datasets import described, files_of
from training.distributed.watchdog import Watchdog
from training.evaluation import records
from training.evaluation.accuracy import Accuracy, CountAccuracy
from training.evaluation.labels import OutputNames, label_specs, output_names
from training.evaluation.loop import evaluate
from training.loading import eval_loader
from training.memory import micro_batch, out_of_memory
from training.network import adapt_weights, model, weights
from training.planning import cost
from training.run import Run


class EvalRecord(NamedTuple):
    """A model's accuracy on one data set by one kind of labels, `own` or `ReaL`, among so many of its classes."""

    data: DatasetInfo
    labels: str
    classes: int
    accuracy: Accuracy


def evaluate_only(run: Run, init: str | None, config: EvalConfig, watch: Watchdog) -> list[dict]:
    """Evaluates the weights `init` as the last stage of the run does; prints and records. Returns the rows (records.py
    says what is in them). All ranks come here; the main one writes."""
    if init is None:
        raise UserError(f"--eval-only needs --init: {weights.SOURCES}")
    is_main = run.ranks.is_main
    train, val = files_of(run.recipe, run.recipe.stages[-1].data)
    data_sets = [described(val)] if config.data == "auto" else [describe(path) for path in config.data]
    network = load_model(run, weights.read(init, print if is_main else weights.silent))
    names = output_names(network.num_classes, weights.class_names(init), train, val)
    found = [record for data in data_sets for record in evaluate_data(run, network, data, names, watch)]
    folder = _folder(init, config.out)
    rows = [_row(run, init, record) for record in found]
    if is_main:
        print(records.table(rows))
        for record in found:
            print(f"{record.data.path}, {record.labels}: {record.accuracy.judgement(record.data.class_names or ())}")
        if folder is not None:
            _write(folder, found, rows)
            print(f"\n{folder / records.FILE}, by class: {', '.join(row['by_class'] for row in rows)}")
    return rows


def load_model(run: Run, given: dict[str, Tensor]) -> nn.Module:
    """The run's network for its last stage's evaluation, with the weights `given`: as many classes as these have, and
    their position embedding resampled to the size of the images."""
    recipe, stage = run.recipe, run.recipe.stages[-1]

    def create(classes):
        return model.of_recipe(recipe.model, resolution=stage.eval_side, classes=classes, drop_path=0.0)

    if (classes := recipe.model.classes) == "auto":
        with torch.device("meta"):
            classes = adapt_weights.num_classes(given, create(1))
        if classes == 0:
            raise UserError(
                f"the weights have no classifier that {recipe.model.name} knows; there is nothing to evaluate"
            )
    network = create(classes)
    cost.check_resolution(network, stage.eval_side)
    adapt_weights.load_weights(network, adapt_weights.adapt_state_dict(given, network))
    network.to(run.ranks.device).eval()
    if recipe.speed.channels_last and model.tokens(network) is None:
        network.to(memory_format=torch.channels_last)
    return network


def evaluate_data(
    run: Run, network: nn.Module, data: DatasetInfo, names: OutputNames, watch: Watchdog
) -> list[EvalRecord]:
    """One pass of `network` over a data set, with its own labels and, where they fit, with ReaL's."""
    stage, ranks = run.recipe.stages[-1], run.ranks
    specs = label_specs(data, names, network.num_classes, ranks)
    batch = micro_batch.for_evaluation(run.recipe.speed.micro_batch)
    loader = eval_loader(data.path, data.samples, stage, batch=batch, placement=run.placement)
    batches = watch.watched(loader, f"evaluating on {data.path}").epoch(0)
    counters = [CountAccuracy(data.classes, ranks.device, spec) for spec in specs.values()]
    with out_of_memory.explained_in_evaluation(run, stage, batch):
        [found] = evaluate(
            [network], [counters], batches, autocast=run.autocast, flip=stage.eval_flip, normalize=run.normalize
        )
    chosen = specs["own"].class_map
    classes = network.num_classes if chosen is None else len(chosen.unique())
    return [EvalRecord(data, labels, classes, accuracy) for labels, accuracy in zip(specs, found, strict=True)]


def _row(run, init, record):
    stage = run.recipe.stages[-1]
    return {
        "weights": str(init),
        "model": run.recipe.model.name,
        "data": str(record.data.path),
        "labels": record.labels,
        "classes": record.classes,
        "images": record.accuracy.images,
        "resolution": stage.eval_side,
        "crop": stage.eval_crop,
        "flip": stage.eval_flip,
        "precision": str(run.precision).removeprefix("torch."),
        "top1": record.accuracy.top1,
        "top5": record.accuracy.top5,
        "balanced": record.accuracy.balanced,
        "majority": record.accuracy.majority,
        "loss": record.accuracy.loss if record.labels == "own" else None,
    }


def _folder(init, out):
    """Where results go; None: nowhere."""
    if out != "auto":
        folder = Path(out)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder
    path = Path(init)
    return next((place for place in (path, path.parent) if (place / "recipe.yaml").is_file()), None)


def _write(folder, found, rows):
    taken = {row.get("by_class") for row in records.others(folder, rows)}
    for record, row in zip(found, rows, strict=True):
        row["by_class"] = records.name_by_class(row, taken)
        taken.add(row["by_class"])
        data = record.data
        names = data.class_names or tuple(map(str, range(data.classes)))
        records.write_by_class(folder / row["by_class"], names, record.accuracy.by_class)
    records.write(folder, rows)
