"""Runs that are asked to stop at random steps of all stages: fifty times, and the end must be the same."""

import random
import re
import signal
from pathlib import Path

from bench.faults import betons, campaign
from bench.faults.campaign import OURS, Fault
from bench.faults.runs import LIMIT, same_weights, steps, train, undisturbed, wait_for, words

STOPS = 50
CHAINS = 2  # runs side by side, each of which takes its part of the stops


def run(folder: Path, *, quick: bool) -> list[Fault]:
    """SIGTERM or SIGUSR1 at random steps over all stages."""
    data = betons.write(folder)
    stops, chains = (2, 1) if quick else (STOPS, CHAINS)
    epochs = 1 if quick else 12
    recipe, whole = undisturbed(folder, data, epochs=epochs)
    total, faults = steps(whole), []
    cases = [(recipe, data, whole, total, stops // chains, k) for k in range(chains)]
    for (*_, count, number), ended in campaign.each(cases, _stopped_often, limit=LIMIT * stops, at_once=chains):
        found = ended.value or [("crash", ended.text[-200:])] * count
        faults += [Fault(OURS, f"stop {number}.{k}", *end) for k, end in enumerate(found)]
    return faults


def _stopped_often(recipe, data, whole, total, count, number):
    chance, run = random.Random(number), whole.parent / f"stopped{number}"
    given, seen = words(recipe, data, whole.parent, run.name), []
    for at in sorted(chance.sample(range(1, max(count + 1, int(0.9 * total))), count)):
        target = max(at, steps(run) + 1)  # of this start: the log tells of the steps before it too
        child = campaign.Child(train, *given)
        wait_for(child, lambda target=target: steps(run) >= target)
        child.signal(chance.choice([signal.SIGTERM, signal.SIGUSR1]))
        child.wait(LIMIT)
        ended = child.end()
        if ended.status != 0:
            seen.append(("hang" if ended.status is None else "crash", f"status {ended.status}: {ended.last_line}"))
        else:
            stopped = re.search(r"stopped at step \d+", ended.text)
            seen.append(("detected", stopped[0]) if stopped else ("harmless", "too late: it ended before the signal"))
    last = campaign.forked(train, *given, limit=5 * LIMIT)
    if last.status != 0:
        return [("crash", last.last_line)] * count
    if not same_weights(whole, run):
        return [("silent", "other weights in the end")] * count
    return seen
