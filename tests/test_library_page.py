"""Every block of docs/library.md runs, and each loop trains on exactly the batches that the loader gives."""

import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from ffcv_ops import mixup_cutmix, train_loader
from ffcv_ops.stock import Compiler

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text()
BLOCKS = dict(re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
FLOATS = {"resolution": 32, "batch_size": 16, "output": "float32", "seed": 0}
LOADERS = {  # what the page's loader is told
    "pytorch": {"augment": "three", "color_jitter": 0.3, "output": "uint8"},
    "timm": {"augment": "rand"},
    "torchvision": {"augment": "trivial", "erasing": 0.1},
    "lightning": {"augment": "three"},
    "accelerate": {},
    "transformers": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiles):
    folder = tmp_path_factory.mktemp("library")
    for number, tile in enumerate(tiles[:48]):
        place = folder / "photos" / f"class {number % 5}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(place / f"{number:03}.png")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """run(name): the variables that a block leaves behind; its images are small."""
    monkeypatch.chdir(folder)
    if not Path("train.beton").exists():
        exec(BLOCKS["write"], {})

    def run(name):
        code = BLOCKS[name].replace("resolution=224", "resolution=32").replace("batch_size=256", "batch_size=16")
        code = code.replace('"resolution": 224, "batch_size": 256', '"resolution": 32, "batch_size": 16')
        variables = {"__name__": name}
        exec(compile(code, f"docs/library.md, {name}", "exec"), variables)
        return variables

    return run


@contextmanager
def batches_seen():
    """A list of the images that networks are trained on meanwhile."""
    seen = []

    def note(module, inputs):
        if type(module).__name__ == "ResNet" and module.training:
            seen.append(inputs[0].clone())

    hook = register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def test_all_blocks_are_run():
    assert BLOCKS.keys() == {"write", "read", "fields", "state", "ffcv", *LOADERS}
    assert PAGE.count("```python") == len(BLOCKS)


@pytest.mark.parametrize("name, shape", [("read", "[16, 32, 32, 3]"), ("fields", "[16, 64, 64, 3]")])
def test_what_is_printed(run, capsys, name, shape):
    run(name)
    assert shape in capsys.readouterr().out


def test_ffcvs_own_loader(run, capsys):
    Compiler.set_enabled(False)  # test_for_ffcv.py has it compiled, which takes long
    try:
        run("ffcv")
    finally:
        Compiler.set_enabled(True)
    assert capsys.readouterr().out == "torch.Size([16, 224, 224, 3])\n" * 3


def test_the_state_goes_on(run):
    state = run("state")["state"]
    assert (state["epoch"], state["batch"]) == (0, 1)


@pytest.mark.parametrize("name", LOADERS)
def test_a_loop_trains_on_the_loaders_batches(run, name):
    """Lightning and others keep a batch while they ask for the next: what the model sees must not have changed."""
    pytest.importorskip(name if name != "pytorch" else "torch")
    with batches_seen() as seen:
        run(name)
    loader = train_loader("train.beton", **FLOATS | LOADERS[name])
    expected = [batch for epoch in range(2) for batch in loader.epoch(epoch)]
    if name == "pytorch":
        expected = [mixup_cutmix(*batch, classes=5, seed=0, step=step) for step, batch in enumerate(expected)]
    assert [torch.equal(*pair) for pair in zip(seen, (images for images, _ in expected), strict=True)] == [True] * 6


def test_lightning_goes_on_in_the_middle_of_an_epoch(run, tmp_path):
    """From a checkpoint behind step 4 of 6, three in an epoch: the batches and the weights of the run that went on."""
    lightning = pytest.importorskip("lightning")
    model = run("lightning")["Classifier"]
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def trained(**given):
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", use_distributed_sampler=False, **quiet, **given)
        with batches_seen() as seen:
            trainer.fit(whole := model(), ckpt_path=str(start) if start.exists() else None)
        return seen, whole.state_dict()

    start = tmp_path / "step=4.ckpt"
    batches, weights = trained(callbacks=[keep])
    assert start.exists()
    more, same = trained(enable_checkpointing=False)
    assert [torch.equal(*pair) for pair in zip(more, batches[4:], strict=True)] == [True] * 2
    assert all(torch.equal(same[name], weights[name]) for name in weights)
