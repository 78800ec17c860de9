"""Gradients -> new weights: the official parameter groups, LAMB with Apex FusedLAMB's arithmetic, AdamW and SGD.

All arithmetic is multi-tensor and stays on the device: nothing here makes the host wait for a GPU. The learning rate is
set from outside before each step (`config/schedule.py`).

A step whose gradient is not finite is left out on the device too. torch's fused kernels divide the gradients by the
scalar `grad_scale` and do nothing where the scalar `found_inf` is 1; both are meant for loss scaling, and serve for
clipping and for this.

Parameters may be sharded over the ranks (FSDP2). Updates are elementwise, so each rank updates its own part.
"""

import difflib
from collections.abc import Collection
from typing import NamedTuple

import timm.optim
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim.sgd import sgd

from config.recipe import StageConfig
from ffcv_ops.errors import UserError
from training import kernels

CPU_TOGETHER, GPU_TOGETHER = 1 << 18, 1 << 26  # weights


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict]:
    """Two groups: weight matrices, which decay, and the rest, which does not: vectors (biases, norms, LayerScale) and
    what the model itself excludes (class token, position embedding). Frozen parameters are in neither.
    With `layer_decay` timm's groups: such two for each layer, `lr_scale` falling from 1 at the head to the stem."""
    excluded = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    if layer_decay is not None:
        return param_groups_layer_decay(model, weight_decay, no_weight_decay_list=excluded, layer_decay=layer_decay)
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in excluded
            (matrices if decays else rest).append(parameter)
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build(model: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """The stage's optimizer (`stage.optimizer`) over the model's parameter groups: one of ours, of timm's by its name,
    or torch.NAME."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    if config.optimizer == "lamb":
        return Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps, clip_norm=config.clip_norm)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    if config.optimizer == "sgd":
        return Sgd(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    return _foreign(config.optimizer, groups, config)


def _foreign(name, groups, config):
    known = timm.optim.list_optimizers()
    try:
        if name.startswith("torch."):
            return getattr(torch.optim, name.removeprefix("torch."))(groups, lr=config.lr)
        if name not in known:
            raise ValueError(
                f"the nearest names are {', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0))}"
            )
        info = timm.optim.get_optimizer_info(name)
        own = {"betas": config.betas} if info.has_betas and info.num_betas == 2 else {}
        return timm.optim.create_optimizer_v2(groups, name, lr=config.lr, momentum=config.momentum, **own)
    except (AssertionError, AttributeError, ImportError, TypeError, ValueError) as error:
        said = str(error).partition("\n")[0][:200]
        raise UserError(f"stage.optimizer {name}: neither lamb, adamw, sgd, timm's nor torch.NAME ({said})") from error


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class Average(NamedTuple):
    """An exponential moving average: a copy of `model` that moves towards it by 1 - `decay` of the way in each step."""

    copy: nn.Module
    model: nn.Module
    decay: float


def step(
    optimizer: torch.optim.Optimizer,
    grad_norm: Tensor,
    *,
    clip_norm: float | None,
    skip: Tensor,
    average: Average | None = None,
) -> None:
    """One step with the gradients at hand, clipped to `clip_norm`, and one of the average; nothing moves where `skip`
    is 1.

    grad_norm: of all gradients, before clipping. Both are scalars on the device, and stay there.
    """
    optimizer.found_inf, averaged = skip, ()
    if isinstance(optimizer, Lamb):  # clips by itself, as FusedLAMB does
        averaged = optimizer.step(grad_norm=grad_norm, average=average)
    elif not optimizer.defaults.get("fused"):  # of timm or torch: they know nothing of `found_inf`, so the host waits
        if not skip.item():
            if clip_norm is not None:
                torch._foreach_mul_(
                    [p.grad for p in _with_gradients(optimizer)], (clip_norm / (grad_norm + 1e-6)).clamp(max=1)
                )
            optimizer.step()
    else:
        optimizer.grad_scale = None if clip_norm is None else ((grad_norm + 1e-6) / clip_norm).clamp(min=1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if average is not None:
        update_average(average, skip=skip, done=averaged)


@torch.no_grad()
def update_average(average: Average, *, skip: Tensor, done: Collection[Tensor] = ()) -> None:
    """Moves the averages of all parameters and buffers but `done`; where `skip` is 1, nothing moves.

    This is a step of SGD on half the squared distance, and done by torch's kernel for that: one pass, which asks the
    device whether to do anything. Integer buffers are copied.
    """
    done = {id(value) for value in done}
    pairs = [(copy, value) for copy, value in _pairs(average) if id(value) not in done]
    for copy, value in pairs:
        if not copy.is_floating_point():
            copy.copy_(value)
    pairs = [pair for pair in pairs if pair[0].is_floating_point()]
    if pairs:
        copies, values = zip(*pairs, strict=True)
        sgd(
            local(copies), local(values), [None] * len(copies), fused=True, found_inf=skip,
            lr=1 - average.decay, maximize=True, weight_decay=1.0, momentum=0.0, dampening=0.0, nesterov=False,
        )  # fmt: skip


def _pairs(average):
    """(average, value) of each parameter and buffer."""
    both = ([*module.parameters(), *module.buffers()] for module in (average.copy, average.model))
    return zip(*both, strict=True)


def running_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The model's buffers, each with a copy. A forward pass in training changes those of batch normalization."""
    return [(buffer, buffer.clone()) for buffer in model.buffers()]


def restore_statistics(before: list[tuple[Tensor, Tensor]], skip: Tensor) -> None:
    """Puts buffers back to what they were, where `skip` is 1: one image that is not finite would stay in them."""
    for buffer, copy in before:
        buffer.copy_(torch.where(skip > 0, copy, buffer))


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments the memory layout of their parameters. A checkpoint keeps that of the run which wrote it, and
    torch's fused kernels walk through the memory of both without looking at strides."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def local(tensors) -> list[Tensor]:
    """This rank's parts of sharded tensors; others as they are."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar on the device."""
    norm = get_total_norm([parameter.grad for parameter in _with_gradients(optimizer)])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _with_gradients(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


class Sgd(torch.optim.SGD):
    """torch's SGD with momentum; its own class has no kernel for sharded tensors, and keeps what is in the memory as
    the first momentum if the first step is left out."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            sgd(
                local(params),
                local(p.grad for p in params),
                local(self.state[p]["momentum_buffer"] for p in params),
                fused=True,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
            )


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020) as Apex FusedLAMB does it, with bias correction and without NVLAMB:

        g <- g / max(|all gradients| / clip_norm, 1)
        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        u <- m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p
        p <- p - lr r u,   r = |p| / |u| where decay is not 0 (1 if either norm is 0), else 1

    The gradients may be overwritten with the clipped ones. A parameter's state is that of torch's fused Adam. Where
    the attribute `found_inf`, a scalar on the device, is 1, a step changes nothing.
    """

    def __init__(self, params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip_norm=1.0):
        # `fused` tells torch, when it loads a state, that the step counters live on the parameters' device.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})
        self.clip_norm = clip_norm
        self.grad_norm = None  # of the last step, before clipping: a scalar on the device
        self.found_inf = None

    @torch.no_grad()
    def step(self, *, grad_norm: Tensor | None = None, average: Average | None = None) -> list[Tensor]:
        """`grad_norm`: the global norm of all gradients, where the caller has it already. Returns the parameters whose
        averages moved with them: all that have gradients where Triton's kernels take the step, else none."""
        self.grad_norm = gradient_norm(self) if grad_norm is None else grad_norm
        divisor = None
        if self.clip_norm is not None:
            divisor = (self.grad_norm / self.clip_norm).clamp(min=1.0).float()
        if kernels.usable(self.grad_norm.device) and self._fits_kernels():
            self._step_in_two_passes(divisor, average)
            return _with_gradients(self)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            steps = [self._state_of(p)["step"] for p in params]
            torch._foreach_add_(steps, 1)
            if group["weight_decay"] == 0:
                self._adam(local(params), params, group, group["lr"], divisor)
            else:
                for chunk, updates in _chunks(params):
                    # Adam with rate -1 adds its direction to where it starts: from decay * p it arrives at u.
                    torch._foreach_copy_(updates, local(chunk))
                    torch._foreach_mul_(updates, group["weight_decay"])
                    self._adam(updates, chunk, group, -1.0, divisor)
                    torch._foreach_addcmul_(local(chunk), updates, self._ratios(chunk, updates), value=-group["lr"])
            if self.found_inf is not None:
                torch._foreach_sub_(steps, [self.found_inf] * len(steps))
        return []

    def _fits_kernels(self):
        """They walk through memory and look at no strides."""
        return all(
            p.dtype == p.grad.dtype == torch.float32 and p.stride() == p.grad.stride() for p in _with_gradients(self)
        )

    def _step_in_two_passes(self, divisor, average):
        from training.kernels import lamb  # and with it Triton

        copies = {} if average is None else {id(value): copy for copy, value in _pairs(average)}
        share, updates, mesh = 0.0 if average is None else 1 - average.decay, [], None
        for group in self.param_groups:
            law = lamb.Law(group["lr"], *group["betas"], group["eps"], group["weight_decay"], share)
            for p in (p for p in group["params"] if p.grad is not None):
                state, copy = self._state_of(p), copies.get(id(p))
                parts = local([p, p.grad, state["exp_avg"], state["exp_avg_sq"]])
                updates.append(lamb.Update(*parts, state["step"], None if copy is None else local([copy])[0], law))
                mesh = p.device_mesh if isinstance(p, DTensor) else None
        zero = torch.zeros((), device=self.grad_norm.device)
        divisor, skip = (zero + 1 if divisor is None else divisor), (zero if self.found_inf is None else self.found_inf)
        lamb.step(updates, divisor, skip, mesh and mesh.get_group())

    def _state_of(self, parameter):
        if parameter not in self.state:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | moments
        return self.state[parameter]

    def _adam(self, targets, params, group, lr, divisor):
        """Updates the moments of `params` by their gradients / `divisor` and moves `targets`, tensors like `params`:
        torch's kernel, without the bookkeeping that torch.optim does around it, as it is called many times here."""
        state = [self.state[p] for p in params]
        torch._fused_adam_(
            targets,
            local(p.grad for p in params),
            local(s["exp_avg"] for s in state),
            local(s["exp_avg_sq"] for s in state),
            [],
            [s["step"] for s in state],
            lr=lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=self.found_inf,
        )

    def _ratios(self, params, updates):
        """|p| / |u| of each tensor; 1 if either is 0, and 0 where the step is left out."""
        norms = torch.stack(torch._foreach_norm([*local(params), *updates]))
        if isinstance(params[0], DTensor):
            norms = norms.square()
            distributed.all_reduce(norms, group=params[0].device_mesh.get_group())
            norms = norms.sqrt()
        weights, lengths = norms.view(2, -1)
        ratios = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0)
        if self.found_inf is not None:
            ratios = torch.where(self.found_inf > 0, 0.0, ratios)
        return list(ratios.unbind())


def _chunks(params):
    """(parameters, space for their updates) that LAMB handles at once. On a GPU many, so that its kernels are long; on
    a CPU few, so that all passes but the first find them in its cache. The space is the same for all; the chunks are
    the same on all ranks, which share norms."""
    most = CPU_TOGETHER if params[0].device.type == "cpu" else GPU_TOGETHER
    chunks, size = [], 0
    for parameter in params:
        if not chunks or size + parameter.numel() > most:
            chunks.append([])
            size = 0
        chunks[-1].append(parameter)
        size += parameter.numel()
    sizes = [[part.numel() for part in local(chunk)] for chunk in chunks]
    space = torch.empty(max(map(sum, sizes)), dtype=torch.float32, device=params[0].device)
    for chunk, counts in zip(chunks, sizes, strict=True):
        pairs = zip(space[: sum(counts)].split(counts), local(chunk), strict=True)
        yield chunk, [update.as_strided(part.shape, part.stride()) for update, part in pairs]
