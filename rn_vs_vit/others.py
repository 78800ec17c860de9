"""Finished cells on the other labels and images that ImageNet models are judged by, kept in CELL/others.json.

V2 (Recht et al. 2019): other images of the same classes, a .beton. ReaL: other labels of the validation images, see
training/evaluation/labels.py.
"""

import json
from pathlib import Path

from ffcv_ops.errors import UserError
from ffcv_ops.files import read_regular, write_atomically
from ffcv_ops.storage.index import describe
from rn_vs_vit.grid import Cell
from training import distributed
from training.distributed.watchdog import Watchdog
from training.evaluation.evaluate_only import evaluate_data, load_model
from training.evaluation.labels import output_names
from training.network import weights
from training.run import Run, precision


def read(cell: Cell) -> dict[str, float]:
    """{"ReaL": top-1, "V2": top-1}, shares, as far as they are there."""
    path = cell.folder / "others.json"
    return json.loads(read_regular(path)) if path.exists() else {}


def evaluate(cell: Cell, *, v2: str | None, real: bool) -> None:
    """Adds what is asked for and not there yet."""
    known, data = read(cell), cell.run.data
    files = {"V2": v2, "ReaL": data.val if real else None}
    missing = [name for name, file in files.items() if file and name not in known]
    if not missing:
        return
    ranks = distributed.init_process_group(cell.run.speed.device)
    try:
        run = Run(cell.run, ranks, {}, precision(cell.run.speed.precision, ranks.device))
        network = load_model(run, weights.read(cell.folder))
        names = output_names(network.num_classes, None, data.train, data.val)
        for name in missing:
            labels = "ReaL" if name == "ReaL" else "own"
            with Watchdog(cell.run.watchdog, ranks) as watch:
                records = evaluate_data(run, network, describe(Path(files[name])), names, watch)
            found = [record.accuracy.top1 for record in records if record.labels == labels]
            if not found:
                raise UserError(f"ReaL needs ImageNet's 1,000 classes, and names ILSVRC2012_val_* in {data.val}'s list")
            known[name] = found[0]
    finally:
        distributed.destroy_process_group()
    write_atomically(cell.folder / "others.json", lambda path: path.write_text(json.dumps(known)))
