"""Evaluation on several ranks: each image once."""

import os
import socket
import time
from pathlib import Path

import torch

from bench.faults import betons, campaign
from bench.faults.campaign import OURS, STOCK, Fault
from bench.faults.runs import LIMIT, train, undisturbed, words


def run(folder: Path, *, quick: bool) -> list[Fault]:
    """Each image is counted once, whatever the number of ranks, and top-1 is the same to the last digit."""
    from training.evaluation import records

    data = betons.write(folder)
    recipe, whole = undisturbed(folder, data, epochs=1)
    given = words(recipe, data, folder / "runs", "evaluated", "--eval-only", f"--init={whole}")
    faults, first = [], None
    for world in (1, 3) if quick else (1, 2, 3, 7):
        results = folder / "evaluated" / str(world)
        ends = _ranks(world, train, *given, f"--eval.out={results}")
        if any(ended.status != 0 for ended in ends):
            hangs = any(ended.status is None for ended in ends)
            text = "".join(ended.text for ended in ends)
            faults.append(Fault(OURS, f"{world} ranks", "hang" if hangs else "crash", text[-200:]))
            continue
        (found,) = records.read(results)
        first = first or found
        right = found["images"] == betons.SAMPLES and (found["top1"], found["top5"]) == (first["top1"], first["top5"])
        outcome = "harmless" if right else "silent"
        faults.append(Fault(OURS, f"{world} ranks", outcome, f"{found['images']} images, {found['top1']}"))
    for world in () if quick else (1, 2, 3, 7):
        counts = [ended.value for ended in _ranks(world, _stock_share, data)]
        total = sum(count or 0 for count in counts)
        outcome = "harmless" if total == betons.SAMPLES else "silent"
        faults.append(Fault(STOCK, f"{world} ranks", outcome, f"{total} images of {betons.SAMPLES}"))
    return faults


def _ranks(world: int, function, *arguments):
    """How `function(*arguments)` ended in each of `world` processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [campaign.Child(_as_rank, rank, world, port, function, *arguments) for rank in range(world)]
    deadline = time.monotonic() + LIMIT
    for child in children:
        child.wait(deadline - time.monotonic())
    return [child.end() for child in children]


def _as_rank(rank: int, world: int, port: int, function, *arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    return function(*arguments)


def _stock_share(path: Path) -> int:
    """How many samples FFCV's distributed sequential order gives this rank."""
    from ffcv.loader import Loader, OrderOption

    torch.distributed.init_process_group("gloo")
    order = OrderOption.SEQUENTIAL
    loader = Loader(str(path), batch_size=16, num_workers=1, order=order, distributed=True, drop_last=False)
    return len(loader.next_traversal_order())
