"""Two processes on a CPU (gloo): DDP and FSDP2 against one process with the whole batch, and their checkpoints."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

SETUP = """
import copy, json, sys
sys.path.insert(0, {root!r})
import torch
import train_imagenet
from tests.training.one_step import take_step
from training import datasets, distributed
from training.distributed import parallel
from config.recipe import load_recipe
from training.memory.micro_batch import random_batch
from training.run import Run
from training.saving.run_folder import RunFolder
from training.stage import create_stage

ranks = distributed.init_process_group("cpu")


def train(how, optimizer, *, steps, mode="exact", piece=8, saved=None, compile=None):
    keys = {{"stage.resolution": "32", "stage.batch": "32", "stage.drop_path": "0.3", "stage.optimizer": optimizer,
             "stage.lr": "1e-3", "stage.clip_norm": "1.0", "speed.drop_path": mode, "speed.parallel": how,
             "log.out": sys.argv[1]}}
    run = Run(load_recipe({root!r} + "/recipes/smoke.yaml", keys), ranks, {{"main": datasets.DataSet(None, None, 5)}},
              torch.float32)
    share, stage = 32 // ranks.world, create_stage(run, 0)
    stage.micro_batch_size, stage.seed = piece, 0
    if saved:
        stage.load_state_dict(copy.deepcopy(saved))
    parallel.shard(run, stage)
    if compile:
        compile(run, stage)
    parallel.wrap(run, stage)
    stage.model.train()
    means = []
    for k in steps:
        torch.manual_seed(k)
        stage.epoch, stage.step_in_epoch = 0, k
        images, labels = (part[ranks.rank * share :][:share] for part in random_batch(run, stage.config, 32))
        loss, norm = take_step(run, stage, images, labels)
        means.append([(distributed.all_reduce_sum(torch.tensor(loss)) / ranks.world).item(), norm])
    return run, stage, means
"""

WORKER = (
    SETUP
    + """
class Uneven:  # more batches in one rank than in the other; together always the same images
    def epoch(self, _, resolution=None):
        every = [random_batch(run, run.recipe.stages[0], 8) for k in range(5) if torch.manual_seed(k)]
        yield from every[ranks.rank * 2 :][: 5 if ranks.world == 1 else 2 + ranks.rank]


ways = ("ddp", "fsdp") if ranks.world > 1 else ("ddp",)
found = {{}}
for mode in ("exact", "subset"):
    for how in ways:
        found[f"{{how}} {{mode}}"] = train(how, "lamb", steps=range(20), mode=mode)[2]
if ranks.world > 1:
    found["one piece"] = train("ddp", "lamb", steps=range(20), piece=32 // ranks.world)[2]
for optimizer in ("lamb", "adamw", "sgd"):
    for how in ways:
        run, stage, means = train(how, optimizer, steps=range(3))
        folder = RunFolder(run.recipe)
        folder.save(stage.state_dict(), {{}}, is_main=ranks.is_main)
        distributed.barrier()
        saved = folder.load(is_main=ranks.is_main)
        for then in ways:
            found[f"{{optimizer}} {{how}} {{then}}"] = means + train(then, optimizer, steps=range(3, 6), saved=saved)[2]
        distributed.barrier()
stage.val_loader = Uneven()
found["evaluation"] = train_imagenet.evaluate_stage(run, stage, may_be_last=False)
if ranks.is_main:
    print(json.dumps(found), flush=True)
distributed.destroy_process_group()
"""
)

COMPILED = (
    SETUP
    + """
from contextlib import nullcontext
from torch._dynamo.utils import counters
from training.memory import compiling

graphs, said = [], []


def compile(run, stage):
    compiling.compile_stage(run, stage, train_imagenet.forward_backward, say=said.append)
    graphs.append(counters["stats"]["unique_graphs"])


losses = [train("fsdp", "lamb", steps=range(3))[2], train("fsdp", "lamb", steps=range(3), compile=compile)[2]]
graphs.append(counters["stats"]["unique_graphs"])
said.append("now without a compiler in one rank")
none = torch._inductor.config.patch({{"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}})
with none if ranks.rank == 1 else nullcontext():
    losses.append(train("fsdp", "lamb", steps=range(3), compile=compile)[2])
if ranks.is_main:
    print(json.dumps([graphs, said, losses]), flush=True)
distributed.destroy_process_group()
"""
)


@pytest.fixture(scope="module")
def found(run_python, tmp_path_factory):
    """What one rank and two ranks found."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "worker.py").write_text(WORKER.format(root=str(ROOT)))
    results = []
    for ranks in (1, 2):
        done = run_python([folder / "worker.py", folder], ranks=ranks)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    return results


def flat(rows):
    return [value for row in rows for value in row]


@pytest.mark.timeout(420)
@pytest.mark.parametrize("law", ["exact", "subset"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_ranks_are_one_for_20_steps(how, law, found):
    one, two = found
    losses = [loss for loss, _ in one[f"ddp {law}"]]
    assert [loss for loss, _ in two[f"{how} {law}"]] == pytest.approx(losses, abs=1e-5)
    assert len(losses) == 20
    assert max(losses) - min(losses) > 0.01
    other = "exact" if law == "subset" else "subset"
    assert [loss for loss, _ in two[f"{how} {other}"]] != pytest.approx(losses, abs=1e-3)


def test_pieces_do_not_matter(found):
    one, two = found
    losses = [loss for loss, _ in one["ddp exact"]]
    assert [loss for loss, _ in two["one piece"]] == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("optimizer", ["lamb", "adamw", "sgd"])
def test_checkpoints_go_on_under_the_other_way(optimizer, found):
    """Saved by DDP or FSDP after three steps, three more under each: the numbers of one process that did the same."""
    one, two = found
    expected = flat(one[f"{optimizer} ddp ddp"])
    for how in ("ddp", "fsdp"):
        for then in ("ddp", "fsdp"):
            assert flat(two[f"{optimizer} {how} {then}"]) == pytest.approx(expected, abs=2e-5)
    assert len({round(value, 3) for value in expected}) > 6


def test_a_sharded_model_is_evaluated_with_unequal_shares(found):
    one, two = found
    assert two["evaluation"] == pytest.approx(one["evaluation"], abs=1e-5)
    assert two["evaluation"]["val_images"] == 40
    assert "ema_top1" in two["evaluation"]


@pytest.mark.slow
def test_a_sharded_model_is_compiled_once_or_in_no_rank(run_python, tmp_path):
    """A graph each for the block, the mixing and the compiler's trial. One rank without a compiler does not hang."""
    (tmp_path / "worker.py").write_text(COMPILED.format(root=str(ROOT)))
    done = run_python([tmp_path / "worker.py", tmp_path], ranks=2)
    assert done.returncode == 0, done.stderr
    graphs, said, (eager, compiled, without) = json.loads(done.stdout)
    assert graphs[:2] == [3, 3]
    assert said == [
        "now without a compiler in one rank",
        "speed.compile: this platform cannot (another rank says why); going on without",
    ]
    assert flat(compiled) == pytest.approx(flat(eager), abs=1e-5)
    assert without == eager
