"""A run that is killed again and again, until its last weights."""

import random
import signal
from pathlib import Path

from bench.faults import betons
from bench.faults.runs import LIMIT, command, has_ended, newest_checkpoint, same_weights, steps, undisturbed, wait_until
from bench.faults.suite import Fault, finished
from bench.processes import Server

KILLS = 40


def run(folder: Path, server: Server, *, quick: bool) -> list[Fault]:
    """SIGKILL at random moments while it starts, trains, evaluates and saves; a checkpoint is due at every step."""
    data = betons.write(folder, server)
    recipe, whole = undisturbed(server, folder, data, epochs=1 if quick else 12)
    words, run = command(recipe, data, whole.parent, "killed"), whole.parent / "killed"
    kills, total, chance, seen = 2 if quick else KILLS, steps(whole), random.Random(0), []
    while len(seen) < kills:
        begun = newest_checkpoint(run)
        target = begun + (total - begun) / (kills - len(seen) + 1)
        process = server.start(words)
        if chance.random() < 0.2:
            has_ended(process, chance.uniform(0.1, 1.0))  # often while it starts
        else:
            wait_until(process, lambda target=target: steps(run) >= target)
            has_ended(process, chance.uniform(0, 0.1))
        process.kill()
        ended = finished(process, LIMIT)
        if ended.status != -signal.SIGKILL:
            seen.append(("crash", f"status {ended.status}: {ended.last_line}"))
            break
        redone = steps(run) - newest_checkpoint(run)
        seen.append(("detected" if redone <= 1 else "lost", f"{redone} steps to be done again"))
    last = finished(server.start(words), 5 * LIMIT)
    if last.status != 0 or not same_weights(whole, run):
        seen = [("lost", f"the run in the end: status {last.status}, {last.last_line}")] * len(seen)
    return [Fault(f"kill {k}", *end) for k, end in enumerate(seen)]
