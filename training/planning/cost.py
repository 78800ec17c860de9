"""What a network costs: parameters, multiply-adds, and the memory that a training pass keeps. Nothing is computed: all
passes run on shapes alone, whatever device the weights are on.
"""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ffcv_ops.errors import UserError
from training.network import stochastic_depth


def num_parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def gmacs(model: nn.Module, resolution: int) -> float:
    """Multiply-adds of one image's evaluation in units of 10^9 (the papers' "GFLOPs"): all matrix products, attention
    and convolutions. UserError where the model cannot take images of `resolution` x `resolution` pixels."""
    with FlopCounterMode(display=False) as counter:
        check_resolution(model, resolution)
    return counter.get_total_flops() / 2 / 1e9


def check_resolution(model: nn.Module, resolution: int) -> None:
    """UserError where the model cannot take images of `resolution` x `resolution` pixels."""
    shapes = {name: torch.empty_like(value, device="meta") for name, value in _state(model).items()}
    image = torch.empty(1, 3, resolution, resolution, device="meta")
    was_training = model.training
    try:
        with torch.no_grad():
            torch.func.functional_call(model.eval(), shapes, (image,))
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:  # each layer has errors of its own
        name, reason = model.default_cfg.get("architecture", "the model"), str(error).partition("\n")[0]
        raise UserError(f"{name} cannot take images of {resolution} x {resolution} px ({reason:.200})") from error
    finally:
        model.train(was_training)


def activation_bytes(model: nn.Module, resolution: int, precision: torch.dtype) -> tuple[int, int]:
    """Bytes that a forward pass of training keeps for its backward pass: (once, for each sample), where stochastic
    depth computes all samples. `precision` is that of the matrix products; below float32, copies of the weights are
    what is kept once."""
    two, four = (_saved_bytes(model, resolution, precision, samples) for samples in (2, 4))
    return 2 * two - four, (four - two) // 2


def _saved_bytes(model, resolution, precision, samples):
    """Autograd is asked for each tensor that it saves; a storage counts once, the weights' own not at all."""
    storages, alive = {}, []

    def save(tensor):
        alive.append(tensor)  # a storage that is freed could lend its address to the next
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    branches = stochastic_depth.branches(model)
    masks = [(branch.scale, branch.kept, branch.place) for branch in branches]
    was_training = model.training
    with FakeTensorMode():
        weights = {
            name: torch.empty(value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
            for name, value in _state(model).items()
        }
        own = {value.untyped_storage()._cdata for value in weights.values()}
        for branch in branches:
            branch.scale, branch.kept, branch.place = torch.ones(samples), None, None
        images = torch.empty(samples, 3, resolution, resolution)
        autocast = torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast:
            torch.func.functional_call(model.train(), weights, (images,))
    model.train(was_training)
    for branch, mask in zip(branches, masks, strict=True):
        branch.scale, branch.kept, branch.place = mask
    return sum(size for storage, size in storages.items() if storage not in own)


def _state(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
