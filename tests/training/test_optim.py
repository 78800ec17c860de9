"""References: LAMB transcribed to float64 NumPy, timm's Lamb and parameter groups, plain gradient descent by hand."""

import copy
import inspect
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm.optim
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from config.recipe import load_recipe
from training import optim
from training.network import model

RECIPES = Path(__file__).parents[2] / "recipes"
LAMB = {"lr": 4e-3, "betas": (0.9, 0.999), "eps": 1e-8}


def small_vit(name="deit3_micro_patch16_224", classes=10):
    torch.manual_seed(0)
    return model.create(name, resolution=32, classes=classes, drop_path=0.0, layer_scale=1e-4)


def give_gradients(network, step, size):
    """Random gradients with a global norm of `size`; each tensor has a scale of its own, in each step another."""
    random = torch.Generator().manual_seed(step)
    for parameter in network.parameters():
        scale = 10 ** (4 * torch.rand(1, generator=random).item() - 4)
        parameter.grad = (scale * torch.randn(parameter.shape, generator=random)).to(parameter.device)
    norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
    for parameter in network.parameters():
        parameter.grad *= size / norm


def stage(**keys):
    base = {"weight_decay": 0.05, "momentum": 0.9, "nesterov": False, "clip_norm": 1.0, "optimizer": "lamb"}
    base["layer_decay"] = None
    return SimpleNamespace(**(base | LAMB | keys))


def update(optimizer, *, clip_norm, scaler=None, halted=None, average=None):
    """A step as the training loop takes it. Returns the norm and whether it was left out."""
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = optim.gradient_norm(optimizer)
    skip = (~norm.isfinite()).float() if halted is None else halted
    optim.step(optimizer, norm, clip_norm=clip_norm, skip=skip, average=average)
    if scaler is not None:
        scaler.update()
    return norm, skip


# --- parameter groups ----------------------------------------------------------------------------------------------


def test_vit_s_has_50_decayed_tensors_and_126_others():
    with torch.device("meta"):
        network = small_vit("deit3_small_patch16_224")
    decayed, rest = optim.parameter_groups(network, 0.05)
    assert (len(decayed["params"]), len(rest["params"])) == (50, 126)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    assert not any(p is network.pos_embed or p is network.cls_token for p in decayed["params"])


@pytest.mark.parametrize("name", ["deit3_micro_patch16_224", "resnet18"])
def test_groups_are_timms_and_hold_every_parameter_once(name):
    network = small_vit(name)
    skipped = network.no_weight_decay() if name.startswith("deit3") else ()
    timms = param_groups_weight_decay(network, 0.05, no_weight_decay_list=skipped)
    expected = {group["weight_decay"]: group["params"] for group in timms}
    groups = optim.parameter_groups(network, 0.05)
    for group in groups:
        assert {id(p) for p in group["params"]} == {id(p) for p in expected[group["weight_decay"]]}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())


def test_ffcvs_filter_decays_nine_more_vectors_of_a_resnet():
    """What the heads of rn50_ffcv_*.yaml say: FFCV keeps decay from what has "bn" in its name, and only from that."""
    with torch.device("meta"):
        network = model.create("resnet50", resolution=32, classes=10, drop_path=0.0, layer_scale=None)
    ours = {id(p) for p in optim.parameter_groups(network, 1e-4)[0]["params"]}
    theirs = {name for name, _ in network.named_parameters() if "bn" not in name}
    further = [name for name, p in network.named_parameters() if name in theirs and id(p) not in ours]
    assert len(ours) + 9 == len(theirs)
    assert sorted(name.partition(".downsample.1.")[1] for name in further) == [""] + 8 * [".downsample.1."]
    assert "fc.bias" in further


def test_frozen_parameters_are_left_out():
    network = small_vit()
    network.pos_embed.requires_grad_(False)
    network.head.weight.requires_grad_(False)
    held = [id(p) for group in optim.parameter_groups(network, 0.05) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters() if p.requires_grad)


# --- LAMB ----------------------------------------------------------------------------------------------------------


def lamb_by_hand(weights, gradients, decays, *, lr, betas, eps, clip_norm):
    """Apex FusedLAMB's steps in float64. `gradients`: for each step, for each tensor. Returns the final weights."""
    weights = [np.array(w, np.float64) for w in weights]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for t, step in enumerate(gradients, start=1):
        step = [np.array(g, np.float64) for g in step]
        norm = np.sqrt(sum((g**2).sum() for g in step))
        divisor = norm / clip_norm if clip_norm is not None and norm > clip_norm else 1.0
        for i, g in enumerate(step):
            g = g / divisor
            first[i] = betas[0] * first[i] + (1 - betas[0]) * g
            second[i] = betas[1] * second[i] + (1 - betas[1]) * g * g
            direction = first[i] / (1 - betas[0] ** t) / (np.sqrt(second[i] / (1 - betas[1] ** t)) + eps)
            direction = direction + decays[i] * weights[i]
            ratio = 1.0
            if decays[i] != 0:
                lengths = np.sqrt((weights[i] ** 2).sum()), np.sqrt((direction**2).sum())
                ratio = lengths[0] / lengths[1] if lengths[0] > 0 and lengths[1] > 0 else 1.0
            weights[i] = weights[i] - lr * ratio * direction
    return weights


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("size", "clip_norm", "decay"),
    [(30.0, 1.0, 0.05), (0.3, 1.0, 0.05), (30.0, None, 0.05), (30.0, 1.0, 0.0), (30.0, 0.5, 0.3)],
)
def test_lamb_is_the_formula(steps, size, clip_norm, decay):
    network = small_vit()
    nn.init.zeros_(network.blocks[0].mlp.fc1.weight)  # a norm of 0: its trust ratio is 1
    optimizer = optim.Lamb(optim.parameter_groups(network, decay), clip_norm=clip_norm, **LAMB)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    decays = [decay if id(p) in decayed else 0.0 for p in network.parameters()]
    start, gradients = [p.detach().numpy().copy() for p in network.parameters()], []
    for step in range(steps):
        give_gradients(network, step, size)
        gradients.append([p.grad.numpy().copy() for p in network.parameters()])
        optimizer.step()
        assert optimizer.grad_norm.item() == pytest.approx(size, rel=1e-5)  # as it was before clipping
    expected = lamb_by_hand(start, gradients, decays, clip_norm=clip_norm, **LAMB)
    for (name, parameter), value, origin in zip(network.named_parameters(), expected, start, strict=True):
        assert np.abs(parameter.detach().numpy() - value).max() < 1e-6, name
        assert np.abs(value - origin).max() > 2e-5, name


@pytest.mark.parametrize("name", ["rn50_a2", "rn50_a3"])
def test_resnets_strike_back_with_timms_eps(name):
    (stage,) = load_recipe(RECIPES / f"{name}.yaml").stages
    assert stage.eps == inspect.signature(timm.optim.Lamb).parameters["eps"].default


def test_lamb_is_timms_where_both_are_defined_alike():
    ours, theirs = small_vit(), small_vit()
    lamb = optim.Lamb(optim.parameter_groups(ours, 0.05), clip_norm=1.0, **LAMB)
    reference = timm.optim.Lamb(optim.parameter_groups(theirs, 0.05), max_grad_norm=1.0, **LAMB)
    for step in range(5):
        for network, optimizer in ((ours, lamb), (theirs, reference)):
            give_gradients(network, step, size=20.0 if step % 2 else 0.2)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=0)


def test_lists_and_memory_formats_do_not_matter(monkeypatch):
    """Updated all at once or a tensor at a time, contiguous or channels-last: the same steps."""
    results = []
    for most, layout in ((1 << 30, torch.contiguous_format), (1, torch.contiguous_format), (5000, torch.channels_last)):
        monkeypatch.setattr(optim, "CPU_TOGETHER", most)
        network = small_vit("resnet18").to(memory_format=layout)
        optimizer = optim.Lamb(optim.parameter_groups(network, 0.05), **LAMB)
        for step in range(3):
            give_gradients(network, step, size=5.0)
            for parameter in network.parameters():  # in the layout of the weights, as autograd gives them
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            optimizer.step()
        results.append([p.detach().clone() for p in network.parameters()])
    for one, other, third in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=0)
        assert torch.allclose(one, third, atol=1e-6, rtol=0)
        assert one.ndim < 4 or third.is_contiguous(memory_format=torch.channels_last)


def test_parameters_without_gradient_stay():
    network = small_vit()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = optim.Lamb(optim.parameter_groups(network, 0.05), **LAMB)
    optimizer.step()
    network.head.bias.grad = torch.ones(10)
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head.bias"}


@pytest.mark.parametrize("name", ["lamb", "adamw", "sgd"])
def test_a_saved_optimizer_goes_on_bit_for_bit(name):
    straight, resumed = small_vit(), small_vit()

    def advance(network, optimizer, steps):
        for step in steps:
            give_gradients(network, step, size=5.0)
            update(optimizer, clip_norm=1.0)

    advance(straight, optim.build(straight, stage(optimizer=name)), range(5))
    first = optim.build(resumed, stage(optimizer=name))
    advance(resumed, first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = optim.build(resumed, stage(optimizer=name))
    second.load_state_dict(torch.load(file, weights_only=True))
    advance(resumed, second, range(3, 5))
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_saved_state_moves_to_the_device_of_the_weights():
    """Step counters too: LAMB's kernel needs them beside the weights."""
    network = small_vit()
    give_gradients(network, 0, size=1.0)
    saved = optim.build(network, stage())
    saved.step()
    elsewhere = optim.build(small_vit().to("meta"), stage())
    elsewhere.load_state_dict(saved.state_dict())
    assert {value.device.type for state in elsewhere.state.values() for value in state.values()} == {"meta"}


def test_lamb_reads_nothing_back_to_the_host():
    """Tensors without contents: any step that needs a value, a wait on a GPU, fails."""
    with torch.device("meta"):
        network = small_vit()
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer = optim.build(network, stage())
    optimizer.step()
    assert optimizer.grad_norm.shape == ()


# --- building and stepping -----------------------------------------------------------------------------------------


def one_weight(value=1.0, gradient=None):
    network = nn.Linear(3, 1, bias=False)
    nn.init.constant_(network.weight, value)
    network.weight.grad = None if gradient is None else torch.tensor([gradient])
    return network


def test_build_hands_the_stages_keys_to_its_optimizer():
    network = small_vit()
    lamb = optim.build(network, stage(clip_norm=0.7, eps=1e-6))
    adamw = optim.build(network, stage(optimizer="adamw", betas=(0.8, 0.95)))
    sgd = optim.build(network, stage(optimizer="sgd", momentum=0.4, lr=0.1))
    assert (type(lamb), lamb.clip_norm, lamb.defaults["eps"]) == (optim.Lamb, 0.7, 1e-6)
    assert (type(adamw), adamw.defaults["betas"], adamw.defaults["eps"]) == (torch.optim.AdamW, (0.8, 0.95), 1e-8)
    assert (type(sgd), sgd.defaults["momentum"]) == (optim.Sgd, 0.4)
    for optimizer in (lamb, adamw, sgd):
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
        optim.set_lr(optimizer, 0.123)
        assert [group["lr"] for group in optimizer.param_groups] == [0.123, 0.123]


@pytest.mark.parametrize(("clip_norm", "factor"), [(None, 1.0), (1.0, 0.2), (50.0, 1.0)])
def test_sgd_moves_along_the_clipped_gradient(clip_norm, factor):
    network = one_weight(1.0, [3.0, 0.0, -4.0])
    optimizer = optim.build(network, stage(optimizer="sgd", lr=0.5, weight_decay=0.0))
    norm, skipped = update(optimizer, clip_norm=clip_norm)
    assert (norm.item(), skipped.item()) == (5.0, 0.0)
    expected = [1 - 0.5 * factor * 3, 1, 1 + 0.5 * factor * 4]
    assert network.weight[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_adamw_decays_and_steps():
    network = one_weight(2.0, [3.0, 0.0, -4.0])
    optimizer = optim.build(network, stage(optimizer="adamw", lr=0.1, weight_decay=0.5))
    update(optimizer, clip_norm=None)
    decayed = 2.0 * (1 - 0.1 * 0.5)  # the first step of Adam is lr times the gradient's sign
    assert network.weight[0].tolist() == pytest.approx([decayed - 0.1, decayed, decayed + 0.1], rel=1e-5)


@pytest.mark.parametrize("name", ["lamb", "adamw", "sgd"])
def test_scaled_gradients_give_the_same_step_and_infinite_ones_none(name):
    plain, scaled = one_weight(1.0, [3.0, 0.5, -4.0]), one_weight(1.0)
    update(optim.build(plain, stage(optimizer=name)), clip_norm=1.0)
    optimizer = optim.build(scaled, stage(optimizer=name))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale((scaled.weight * torch.tensor([3.0, 0.5, -4.0])).sum()).backward()
    norm, skipped = update(optimizer, clip_norm=1.0, scaler=scaler)
    assert norm.item() == pytest.approx((9 + 0.25 + 16) ** 0.5)
    assert torch.equal(plain.weight, scaled.weight)
    assert not torch.equal(scaled.weight, torch.ones(1, 3))

    optimizer.zero_grad()
    scaler.scale(scaled.weight.sum() * float("inf")).backward()
    norm, skipped = update(optimizer, clip_norm=1.0, scaler=scaler)
    assert not torch.isfinite(norm)
    assert skipped.item() == 1.0
    assert torch.equal(plain.weight, scaled.weight)
    assert scaler.get_scale() == 4.0


# --- steps that are left out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lamb", "adamw", "sgd"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 2])
def test_a_step_that_is_not_finite_leaves_no_trace(name, bad, at):
    """Also if it is the first: weights and moments go on as if it had not been."""
    plain, disturbed = small_vit(), small_vit()
    optimizers = [optim.build(network, stage(optimizer=name)) for network in (plain, disturbed)]
    for step in range(4):
        if step == at:
            give_gradients(disturbed, 99, size=1.0)
            disturbed.head.bias.grad[0] = bad
            norm, skipped = update(optimizers[1], clip_norm=1.0)
            assert (norm.isfinite().item(), skipped.item()) == (False, 1.0)
        for network, optimizer in zip((plain, disturbed), optimizers, strict=True):
            give_gradients(network, step, size=5.0)
            assert update(optimizer, clip_norm=1.0)[1].item() == 0
    for one, other in zip(plain.parameters(), disturbed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["lamb", "adamw", "sgd"])
def test_a_halted_optimizer_moves_nothing(name):
    network = small_vit()
    optimizer = optim.build(network, stage(optimizer=name))
    before = [p.detach().clone() for p in network.parameters()]
    give_gradients(network, 0, size=1.0)
    norm, skipped = update(optimizer, clip_norm=1.0, halted=torch.tensor(1.0))
    assert (norm.item(), skipped.item()) == (pytest.approx(1.0), 1.0)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("size", [0.2, 20.0])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_clipped_steps_are_those_of_torchs_plain_loops(name, size):
    """torch.optim without its multi-tensor kernels, after torch's own clipping."""
    ours, theirs = small_vit(), small_vit()
    optimizer, groups = optim.build(ours, stage(optimizer=name)), optim.parameter_groups(theirs, 0.05)
    keys = {"lr": 4e-3, "foreach": False, "fused": False}
    reference = torch.optim.SGD(groups, momentum=0.9, **keys) if name == "sgd" else torch.optim.AdamW(groups, **keys)
    for step in range(4):
        give_gradients(ours, step, size)
        give_gradients(theirs, step, size)
        update(optimizer, clip_norm=1.0)
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
    for one, other, start in zip(ours.parameters(), theirs.parameters(), small_vit().parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-6, rtol=0)
        assert not torch.equal(one, start)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_torchs_in_float64(nesterov):
    """Five steps of torch.optim.SGD, gradients and weights in double precision; the other kind of momentum is away from
    it by far more than rounding."""
    ours, theirs, other = small_vit(), small_vit().double(), small_vit().double()
    optimizer = optim.build(ours, stage(optimizer="sgd", nesterov=nesterov))
    references = [
        (network, torch.optim.SGD(optim.parameter_groups(network, 0.05), lr=4e-3, momentum=0.9, nesterov=kind))
        for network, kind in ((theirs, nesterov), (other, not nesterov))
    ]
    for step in range(5):
        give_gradients(ours, step, size=20.0)
        for network, reference in references:
            for parameter, one in zip(network.parameters(), ours.parameters(), strict=True):
                parameter.grad = one.grad.double()
            reference.step()
        update(optimizer, clip_norm=None)
    weights = [torch.cat([p.detach().double().flatten() for p in n.parameters()]) for n in (ours, theirs, other)]
    assert (weights[0] - weights[1]).abs().max() < 1e-6
    assert (weights[0] - weights[2]).abs().max() > 1e-3


# --- the average ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deit3_micro_patch16_224", "resnet18"])
def test_the_average_is_timms_with_its_buffers(name):
    network = small_vit(name).train()
    ours, theirs = copy.deepcopy(network).requires_grad_(False), ModelEmaV3(network, decay=0.97)
    exact = {key: value.double() for key, value in network.state_dict().items()}
    optimizer = optim.build(network, stage(optimizer="sgd", lr=0.1))
    for _ in range(5):
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        update(optimizer, clip_norm=1.0, average=optim.Average(ours, network, 0.97))
        optimizer.zero_grad()
        theirs.update(network)
        exact = {key: 0.97 * exact[key] + 0.03 * value.double() for key, value in network.state_dict().items()}
    for key, value in ours.state_dict().items():
        assert torch.allclose(value, theirs.module.state_dict()[key], atol=1e-6, rtol=1e-6), key
        if value.is_floating_point():
            assert torch.allclose(value.double(), exact[key], atol=1e-6, rtol=1e-6), key
            assert value.ndim < 2 or not torch.equal(value, network.state_dict()[key]), key


def test_the_average_stays_where_a_step_is_left_out():
    network, average = small_vit(), small_vit()
    nn.init.ones_(network.head.bias)
    optim.update_average(optim.Average(average, network, 0.9), skip=torch.tensor(1.0))
    assert torch.equal(average.head.bias, torch.zeros(10))
    optim.update_average(optim.Average(average, network, 0.9), skip=torch.tensor(0.0))
    assert torch.allclose(average.head.bias, torch.full((10,), 0.1))


# --- another memory format -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lamb", "adamw", "sgd"])
def test_moments_survive_another_memory_format(name):
    """A run of a convolutional model that goes on with the other speed.channels_last takes the same steps."""

    def begun(memory_format):
        torch.manual_seed(0)
        network = nn.Conv2d(8, 8, 3, bias=False).to(memory_format=memory_format)
        return network, optim.build(network, stage(optimizer=name, lr=0.01))

    def step(network, optimizer, number):
        gradient = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(number))
        network.weight.grad = torch.empty_like(network.weight).copy_(gradient)
        update(optimizer, clip_norm=None)

    before, optimizer = begun(torch.contiguous_format)
    step(before, optimizer, 0)
    step(before, optimizer, 1)
    saved = copy.deepcopy((before.state_dict(), optimizer.state_dict()))
    after, resumed = begun(torch.channels_last)
    after.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    optim.match_memory_format(resumed)
    step(before, optimizer, 2)
    step(after, resumed, 2)
    assert after.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(before.weight, after.weight, atol=1e-7, rtol=0)
