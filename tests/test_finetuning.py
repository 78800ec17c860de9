"""Fine-tuning as people do it: frozen parts, rates by layer, classes of unequal size, other optimizers, a teacher.
References: timm's and torch's own functions, scikit-learn's weights, float64 by hand."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.utils.class_weight import compute_class_weight
from timm.optim import param_groups_layer_decay

import train_imagenet
from config.recipe import load_recipe
from ffcv_ops import order
from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import describe
from tests.training.one_step import take_step
from training import datasets, distributed, optim
from training.loading import train_loader
from training.memory.micro_batch import random_batch
from training.network import freezing, model
from training.run import Run
from training.stage import create_stage

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"model.name": "deit3_micro_patch16_224", "stage.resolution": "32", "stage.batch": "8", "stage.mix_chunk": "8",
        "stage.epochs": "2", "stage.warmup_epochs": "0", "speed.micro_batch": "4", "speed.device": "cpu",
        "log.tensorboard": "false", "data.workers": "1"}  # fmt: skip


def stage_of(beton=None, **keys):
    """A run and its stage with random weights."""
    recipe = load_recipe(ROOT / "recipes/finetune_own.yaml", KEYS | keys)
    info = describe(beton) if beton else None
    run = Run(recipe, distributed.Ranks(0, 1, torch.device("cpu")), {"main": datasets.DataSet(info, info, 5)},
              torch.float32)  # fmt: skip
    stage = create_stage(run, 0)
    stage.micro_batch_size = 4
    return run, stage


def batch_of(run):
    torch.manual_seed(1)
    return random_batch(run, run.recipe.stages[0], 8)


def train(tmp_path, beton, capsys, **keys):
    """The whole command. Returns what it said and the weights at its end."""
    words = [
        f"--{name}={value}" for name, value in (KEYS | {"stage.batch": "48", "stage.mix_chunk": "8"} | keys).items()
    ]
    words += [f"--data.train={beton}", f"--data.val={beton}", f"--log.out={tmp_path}", "--log.name=run"]
    train_imagenet.main(["--cfg", str(ROOT / "recipes/finetune_own.yaml"), *words])
    return capsys.readouterr().out, load_file(tmp_path / "run" / "model.safetensors")


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(train_imagenet.report, "write", lambda folder: "")


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("name", "freeze", "moves"),
    [
        ("deit3_micro_patch16_224", "backbone", ("head.",)),
        ("deit3_micro_patch16_224", "2", ("blocks.2.", "blocks.3.", "blocks.4.", "blocks.5.", "norm.", "head.")),
        ("test_resnet", "backbone", ("fc.",)),
    ],
)
def test_what_is_frozen_keeps_its_bits(name, freeze, moves, raw_beton, tmp_path, capsys):
    torch.manual_seed(0)
    layers = {"layer_scale": 0.5 if name.startswith("deit3") else None}
    before = model.create(name, resolution=32, classes=5, drop_path=0.0, **layers).state_dict()
    save_file(before, tmp_path / "given.safetensors")
    words = {"model.name": name, "stage.freeze": freeze, "stage.head": "keep", "stage.lr": "1e-2", "init":
             tmp_path / "given.safetensors", "model.layer_scale": "0.5"}  # fmt: skip
    _, after = train(tmp_path, raw_beton, capsys, **words)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.startswith(moves)}


def test_more_blocks_than_there_are_cannot_be_frozen():
    with pytest.raises(UserError, match="for all of them set backbone"):
        stage_of(**{"stage.freeze": "7"})
    _, stage = stage_of(**{"stage.freeze": "5"})
    assert not stage.model.blocks[4].mlp.fc1.weight.requires_grad and stage.model.blocks[5].mlp.fc1.weight.requires_grad


def test_frozen_batch_normalization_only_evaluates():
    network = timm.create_model("test_resnet")
    freezing.freeze(network, "backbone")
    freezing.train_mode(network)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert network.training and norms and not any(norm.training for norm in norms)


def test_rates_by_layer_are_timms():
    run, stage = stage_of(**{"stage.layer_decay": "0.7", "stage.lr": "1e-3"})
    skipped = stage.model.no_weight_decay()
    expected = param_groups_layer_decay(stage.model, 0.05, no_weight_decay_list=skipped, layer_decay=0.7)
    optim.set_lr(stage.optimizer, 1e-3)
    found = {
        id(p): (group["lr"], group["weight_decay"]) for group in stage.optimizer.param_groups for p in group["params"]
    }
    assert found == {
        id(p): (1e-3 * group["lr_scale"], group["weight_decay"]) for group in expected for p in group["params"]
    }
    assert min(rate for rate, _ in found.values()) == pytest.approx(1e-3 * 0.7**7)
    take_step(run, stage, *batch_of(run))


# --- classes of unequal size ---------------------------------------------------------------------------------------


def test_class_weights_are_scikit_learns(raw_beton):
    run, stage = stage_of(raw_beton, **{"stage.class_weights": "balanced", "stage.mixup": "0", "stage.cutmix": "0"})
    labels = np.arange(96) % 5
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    np.testing.assert_allclose(stage.class_weights, expected, rtol=1e-6)
    images, labels = batch_of(run)
    stage.model.eval()
    with torch.no_grad():
        logits = stage.model(run.normalize(images)).double().log_softmax(1).numpy()
        loss = train_imagenet.stage_loss(stage, run.normalize(images), torch.eye(5)[labels])
    by_hand = -(expected[labels] * logits[np.arange(8), labels]).mean()
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_balanced_epoch_has_each_class_equally_often(repeats):
    labels = np.repeat([0, 1, 4], [500, 90, 10])
    ids = [order.epoch_sample_ids(600, seed=3, epoch=epoch, repeats=repeats, labels=labels) for epoch in range(2)]
    for one in ids:
        shown = np.bincount(labels[one % 600], minlength=5)
        assert shown.max() - shown[[0, 1, 4]].min() <= repeats and shown[2] == shown[3] == 0
        times = np.bincount(one % 600, minlength=600)
        for name in (0, 1, 4):  # within a class every image is shown before one is shown again
            assert np.ptp(times[labels == name]) <= repeats
        assert np.corrcoef(labels[one % 600], np.arange(len(one)))[0, 1] < 0.2, "in random order"
    assert len(np.unique(np.concatenate(ids))) == len(ids[0]) + len(ids[1]), "every view has draws of its own"
    again = order.epoch_sample_ids(600, seed=3, epoch=1, repeats=repeats, labels=labels)
    np.testing.assert_array_equal(ids[1], again)


def test_the_loader_shows_a_balanced_epoch(raw_beton):
    stage = load_recipe(ROOT / "recipes/finetune_own.yaml", KEYS | {"stage.sampling": "balanced"}).stages[0]
    shown = np.concatenate([labels.numpy().copy() for _, labels in train_loader(raw_beton, 96, stage, seed=1).epoch(0)])
    assert np.bincount(shown).tolist() == [20, 19, 19, 19, 19]


# --- less memory, other optimizers ---------------------------------------------------------------------------------


def test_checkpointing_changes_no_gradient():
    run, plain = stage_of(**{"stage.drop_path": "0.3"})
    same, thrifty = stage_of(**{"stage.drop_path": "0.3", "speed.grad_checkpointing": "true"})
    assert thrifty.model.grad_checkpointing
    for one, stage in ((run, plain), (same, thrifty)):
        stage.model.train()
        train_imagenet.forward_backward(one, stage, *batch_of(run))
    for ours, theirs in zip(thrifty.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["lion", "muon", "torch.RAdam"])
def test_other_optimizers_step_as_they_do_alone_and_leave_bad_steps_out(name):
    _, stage = stage_of(**{"stage.optimizer": name, "stage.lr": "1e-3", "stage.clip_norm": "0.5"})
    alone = copy.deepcopy(stage.model)
    groups = optim.parameter_groups(alone, 0.05)
    if name.startswith("torch."):
        reference = torch.optim.RAdam(groups, lr=1e-3)
    else:
        reference = timm.optim.create_optimizer_v2(groups, name, lr=1e-3, momentum=0.9, betas=(0.9, 0.999))
    for step in range(3):
        torch.manual_seed(step)
        for ours, theirs in zip(stage.model.parameters(), alone.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.5)
        reference.step()
        norm = optim.gradient_norm(stage.optimizer)
        optim.step(stage.optimizer, norm, clip_norm=0.5, skip=torch.tensor(0.0))
    for ours, theirs in zip(stage.model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    before = copy.deepcopy(stage.model.state_dict())
    for parameter in stage.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optim.step(stage.optimizer, torch.tensor(torch.nan), clip_norm=0.5, skip=torch.tensor(1.0))
    assert all(torch.equal(value, before[key]) for key, value in stage.model.state_dict().items())
    fresh = stage_of(**{"stage.optimizer": name})[1]
    fresh.optimizer.load_state_dict(stage.optimizer.state_dict())


@pytest.mark.parametrize("name", ["lionn", "fusedlamb", "torch.LBFGSS", "torch.LBFGS"])
def test_an_optimizer_that_is_not_there_is_one_line(name):
    with pytest.raises(UserError, match=f"stage.optimizer {name}: neither lamb, adamw, sgd, timm's") as told:
        stage_of(**{"stage.optimizer": name})
    assert "\n" not in str(told.value)


# --- distillation --------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path):
    """A model folder, as timm reads it."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    torch.manual_seed(5)
    network = timm.create_model("test_resnet", num_classes=5)
    torch.nn.init.normal_(network.fc.weight)
    save_file(network.state_dict(), folder / "model.safetensors")
    known = {"num_classes": 5, "input_size": [3, 64, 64], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
             "first_conv": "conv1.0", "classifier": "fc"}  # fmt: skip
    content = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": known}
    (folder / "config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}", network.eval()


def log_softmax(values):
    return values - np.log(np.exp(values).sum(1, keepdims=True))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit3_micro_patch16_224"])
def test_the_loss_of_a_student_in_float64(kind, name, teacher):
    where, network = teacher
    keys = {"model.name": name, "stage.distill": kind, "stage.teacher": where, "stage.drop_path": "0"}
    run, stage = stage_of(**keys, **{"stage.distill_alpha": "0.3", "stage.distill_tau": "2.5"})
    images, labels = batch_of(run)
    inputs = run.normalize(images)
    stage.model.train()
    with torch.no_grad():
        outputs, taught = stage.model(inputs), network(inputs).double().numpy()
        loss = float(train_imagenet.stage_loss(stage, inputs, torch.eye(5)[labels]))
    assert isinstance(outputs, tuple) == ("distilled" in name)
    own, imitating = (part.double().numpy() for part in (outputs if isinstance(outputs, tuple) else (outputs, outputs)))
    row = np.arange(8)
    by_labels = -log_softmax(own)[row, labels].mean()
    if kind == "hard":
        by_teacher = -log_softmax(imitating)[row, taught.argmax(1)].mean()
    else:
        theirs = log_softmax(taught / 2.5)
        by_teacher = (np.exp(theirs) * (theirs - log_softmax(imitating / 2.5))).sum() * 2.5**2 / taught.size
    assert loss == pytest.approx(0.7 * by_labels + 0.3 * by_teacher, rel=1e-5)


@pytest.mark.usefixtures("no_report")
def test_a_student_is_trained_and_evaluated(teacher, raw_beton, tmp_path, capsys):
    words = {"model.name": "deit_tiny_distilled_patch16_224", "model.args": "depth=2", "stage.distill": "hard",
             "stage.teacher": teacher[0], "stage.epochs": "1", "stage.head": "keep"}  # fmt: skip
    said, weights = train(tmp_path, raw_beton, capsys, **words)
    assert "epoch    1/1" in said and weights["head_dist.weight"].shape == (5, 192)


def test_a_teacher_that_does_not_fit_is_one_line(teacher):
    where, _ = teacher
    for keys, said in (
        ({"model.mean": "0.5,0.5,0.5"}, "set these: both see the same"),
        ({"stage.teacher": "timm:no_such_model"}, "timm cannot load it"),
    ):
        with pytest.raises(UserError, match=said):
            stage_of(**{"stage.distill": "hard", "stage.teacher": where} | keys)
