"""Checkpoints: atomic, plain, complete; run folders that belong to one recipe."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ffcv_ops.errors import BadInput
from training import optim, recipe
from training.state import Means, RunFolder, State, restore, science, write_atomically

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    return recipe.load(ROOT / "recipes" / "smoke.yaml", {"log.out": str(tmp_path / "runs")})


def begun(run):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    stage = run.stages[0]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return State(0, 0, 0, network, copy.deepcopy(network), optim.build(network, stage), scaler)


def trained(run, steps=3):
    begun_state = begun(run)
    for _ in range(steps):
        begun_state.model(torch.randn(5, 4)).square().sum().backward()
        stage, scaler = run.stages[0], begun_state.scaler
        _, skipped = optim.update(begun_state.optimizer, clip_norm=stage.clip_norm, scaler=scaler)
        begun_state.optimizer.zero_grad()
        optim.average(begun_state.average, begun_state.model, 0.9, skipped=skipped)
        begun_state.step += 1
    begun_state.epoch, begun_state.batch = 1, 2
    return begun_state


def test_what_is_saved_comes_back(run):
    folder, before = RunFolder(run), trained(run)
    folder.prepare(run)
    assert folder.load() is None
    folder.save(before, Means(steps=2, loss=1.5, losses=2), first=True)
    after = begun(run)
    assert restore(after, folder.load()) == Means(steps=2, loss=1.5, losses=2)
    assert (after.epoch, after.batch, after.step) == (1, 2, 3)
    for name in ("model", "average", "optimizer"):
        one, other = (getattr(s, name).state_dict() for s in (before, after))
        assert flat(one) == flat(other)
    again = begun(run)
    assert flat(again.model.state_dict()) != flat(after.model.state_dict())


def flat(value):
    """Nested state as plain values, tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flat(item) for item in value]
    return value


def test_the_last_stages_weights_are_a_file_of_their_own(run):
    folder, before = RunFolder(run), trained(run)
    folder.prepare(run)
    folder.save_weights("model", before.model, first=True)
    assert flat(load_file(folder.path / "model.safetensors")) == flat(dict(before.model.state_dict()))


def test_a_failed_write_leaves_the_file_before(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, lambda p: p.write_text("good"))

    def fail(p):
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, fail)
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    """A child saves over and over and is killed in the middle, several times."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from training.state import write_atomically\n"
        "k = 0\n"
        "while True:\n"
        "    content = {'k': k, 'x': torch.full((2_000_000,), float(k))}\n"
        "    write_atomically(Path(sys.argv[2]), lambda p: torch.save(content, p)); k += 1\n"
        "    print(k, flush=True)\n"
    )
    path = tmp_path / "last.pt"
    child = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(path)], stdout=subprocess.PIPE)
    for _ in range(5):
        child.stdout.readline()
    child.kill()
    child.wait()
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["x"], torch.full((2_000_000,), float(content["k"])))


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_checkpoint_is_refused_in_one_line(run, damage):
    folder = RunFolder(run)
    folder.prepare(run)
    folder.save(trained(run), Means(), first=True)
    whole = folder.checkpoint.read_bytes()
    folder.checkpoint.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(BadInput, match="not a checkpoint of ours") as caught:
        folder.load()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_would_run_code_is_refused(run, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    folder = RunFolder(run)
    folder.prepare(run)
    torch.save({"format": 2, "model": Hostile()}, folder.checkpoint)
    with pytest.raises(BadInput):
        folder.load()
    assert not (tmp_path / "ran").exists()


def test_a_folder_belongs_to_one_recipe(run):
    folder = RunFolder(run)
    folder.prepare(run)
    folder.save(trained(run), Means(), first=True)
    folder.prepare(dataclasses.replace(run, data=dataclasses.replace(run.data, workers=1)))
    stages = (dataclasses.replace(run.stages[0], lr=0.5), *run.stages[1:])
    with pytest.raises(BadInput, match=r"stage first_32: lr .* not 0\.5"):
        folder.prepare(dataclasses.replace(run, stages=stages))


def test_science_names_what_differs(run):
    assert science(run, run) == ""
    assert "seed 0, not 1" in science(run, dataclasses.replace(run, seed=1))
    subset = dataclasses.replace(run, speed=dataclasses.replace(run.speed, drop_path="subset"))
    assert science(run, subset) == "speed.drop_path exact, not subset"
    assert "first_32" in science(run, dataclasses.replace(run, stages=run.stages[:1]))
