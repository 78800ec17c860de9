"""Two hundred kills while checkpoints are saved, and a hundred flipped bits in them.

Beside ours stands what the official DeiT code does: torch.save over its only file, and torch.load. (Stock FFCV has no
checkpoints.)
"""

import copy
import os
import random
import shutil
import signal
from pathlib import Path

import torch
from torch import nn

from bench.faults import campaign
from bench.faults.campaign import OURS, ROOT, STOCK, Fault
from config.recipe import load_recipe
from training import checkpoints, optim
from training.run_folder import RunFolder, State, restore
from training.step_stats import StepStats

KILLS, KILLS_IN_PLACE, FLIPS = 200, 30, 100
CHAINS = 2  # side by side
LONGEST = 0.4  # seconds that saving goes on before the kill; one takes about 0.02
LIMIT = 20


def run(folder: Path, *, quick: bool) -> list[Fault]:
    part = 20 if quick else 1
    folder.mkdir(exist_ok=True)
    faults = []
    for who, chain, kills in ((OURS, _chain, KILLS // part), (STOCK, _chain_in_place, KILLS_IN_PLACE // part)):
        cases = [(folder / f"{who}{number}", kills // CHAINS, number) for number in range(CHAINS)]
        for (_, count, number), ended in campaign.each(cases, chain, limit=2 * kills + LIMIT, at_once=CHAINS):
            found = ended.value or [("crash", ended.last_line)] * count
            faults += [Fault(who, f"killed while saving {number}.{k}", *end) for k, end in enumerate(found)]
    sound = RunFolder(_run(folder / "sound"))
    _make_two(sound.path)
    newest = checkpoints.saved(sound.checkpoints)[-1]
    places = random.Random(0).sample(range(8 * newest.stat().st_size), FLIPS // part)
    for who, read in ((OURS, _read_flipped), (STOCK, _read_flipped_in_place)):
        cases = [(folder / f"{who} {bit}", sound.path, bit) for bit in places]
        for (_, _, bit), ended in campaign.each(cases, read, limit=LIMIT, at_once=2):
            outcome, note = ended.value or campaign.judged(ended, right=lambda value: False)
            faults.append(Fault(who, f"bit {bit} of a checkpoint", outcome, note))
    return faults


def _run(out: Path):
    return load_recipe(ROOT / "recipes" / "smoke.yaml", {"log.out": str(out)})


def _begun(run) -> State:
    torch.manual_seed(0)
    network = nn.Linear(700, 700)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return State(0, 0, 0, network, copy.deepcopy(network), optim.build(network, run.stages[0]), scaler)


def _moved(state: State):
    """The state after one more step: every weight is the number of the step."""
    state.step += 1
    state.batch += 1
    for network in (state.model, state.average):
        for weight in network.parameters():
            weight.data.fill_(float(state.step))


def _whole(state: State) -> bool:
    values = [weight for network in (state.model, state.average) for weight in network.parameters()]
    return all(bool((value == float(state.step)).all()) for value in values)


def _tell(words: str):
    """In one piece, so that a kill does not cut it."""
    os.write(1, f"{words}\n".encode())


# --- ours ----------------------------------------------------------------------------------------------------------


def _save_for_ever(out: Path):
    """Goes on from the newest checkpoint, says so, and saves step after step, saying which is safe."""
    run = _run(out)
    folder, state = RunFolder(run), _begun(run)
    folder.prepare(run)
    saved = folder.load()
    if saved is not None:
        restore(state, saved)
        _tell(f"begin {state.step} {_whole(state)} {len(list(folder.path.rglob('*.tmp')))}")
    while True:
        _moved(state)
        fault = folder.save(state, StepStats(), first=True)
        if fault:
            raise OSError(fault)
        _tell(f"safe {state.step}")


def _chain(out: Path, kills: int, seed: int) -> list[tuple[str, str]]:
    """Saves, is killed, goes on, is killed ... Each kill is judged by the start after it."""
    chance, safe, judged = random.Random(seed), 0, []
    for number in range(kills + 1):
        child = campaign.Child(_save_for_ever, out)
        child.wait(0.05 + chance.uniform(0, LONGEST))
        if number == kills:  # the last start judges only
            child.wait(0.5)
        child.signal(signal.SIGKILL)
        child.wait(LIMIT)
        lines = [line.split() for line in child.end().text.splitlines()]
        if number and safe:
            judged.append(_judge([line for line in lines if line[:1] == ["begin"]], safe, lines))
        elif number:
            judged.append(("harmless", "nothing was safe yet"))
        safe = max([safe, *(int(line[1]) for line in lines if line[:1] == ["safe"])])
    return judged


def _judge(begun, safe: int, lines):
    if not begun:
        return ("harmless", "killed again before it had begun") if not lines else ("lost", " ".join(lines[-1]))
    _, step, whole, strays = begun[0]
    if int(step) < safe:
        return "lost", f"step {safe} was safe, went on at {step}"
    if whole != "True" or strays != "0":
        return "silent", f"weights whole: {whole}, temporary files: {strays}"
    return "detected", f"went on at step {step}, {safe} was safe"


def _make_two(out: Path):
    """Checkpoints of steps 1 and 2. `out`: the run folder."""
    run = _run(out.parent)
    folder, state = RunFolder(run), _begun(run)
    folder.prepare(run)
    for _ in range(2):
        _moved(state)
        folder.save(state, StepStats(), first=True)


def _flip(path: Path, bit: int):
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def _read_flipped(out: Path, sound: Path, bit: int):
    """With one bit of the newest changed, the one before it is read, and that is said."""
    said = []
    shutil.copytree(sound, out / sound.name)
    folder = RunFolder(_run(out))
    _flip(checkpoints.saved(folder.checkpoints)[-1], bit)
    content = folder.load(say=said.append)
    shutil.rmtree(out)
    if content["step"] != 1 or not bool((content["model"]["weight"] == 1).all()):
        return "silent", f"step {content['step']} was read"
    return ("detected", said[0]) if said else ("silent", "the one before it was read without a word")


# --- torch.save in place -------------------------------------------------------------------------------------------


def _save_in_place(path: Path):
    run = _run(path.parent)
    state = _begun(run)
    while True:
        _moved(state)
        torch.save({"step": state.step, "model": state.model.state_dict()}, path)
        _tell(f"safe {state.step}")


def _chain_in_place(out: Path, kills: int, seed: int):
    out.mkdir()
    path, chance, judged = out / "checkpoint.pth", random.Random(seed), []
    for _ in range(kills):
        child = campaign.Child(_save_in_place, path)
        child.wait(0.05 + chance.uniform(0, LONGEST))
        child.signal(signal.SIGKILL)
        child.wait(LIMIT)
        safe = child.end().text
        try:
            content = torch.load(path, weights_only=True)
            whole = bool((content["model"]["weight"] == content["step"]).all())
            judged.append(("harmless", "") if whole else ("silent", "mixed"))
        except Exception as error:  # whichever it is, the file is lost
            judged.append(("lost" if safe else "harmless", f"{error}"[:100]))
    return judged


def _read_flipped_in_place(out: Path, sound: Path, bit: int):
    """torch.load of a plain file with one bit changed."""
    out.mkdir()
    run = _run(out)
    state = _begun(run)
    _moved(state)
    torch.save({"step": state.step, "model": state.model.state_dict()}, out / "checkpoint.pth")
    _flip(out / "checkpoint.pth", bit % (8 * (out / "checkpoint.pth").stat().st_size))
    try:
        content = torch.load(out / "checkpoint.pth", weights_only=True)
    except Exception as error:
        return "detected", f"{error}"[:100]
    same = content["step"] == 1 and all(bool((value == 1).all()) for value in content["model"].values())
    return ("harmless", "") if same else ("silent", "other weights")
