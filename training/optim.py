"""Gradients -> new weights: the official parameter groups, LAMB with Apex FusedLAMB's arithmetic, AdamW and SGD.

All arithmetic is multi-tensor and stays on the device: nothing here makes the host wait for a GPU. The learning rate is
set from outside before each step (`schedule.py`).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.adam import adam

MOMENTS = {"lamb": 2, "adamw": 2, "sgd": 1}  # tensors of each weight's size that an optimizer keeps


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weight matrices, which decay, and the rest, which does not: vectors (biases, norms, LayerScale) and
    what the model itself excludes (class token, position embedding). Frozen parameters are in neither."""
    excluded = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in excluded
            (matrices if decays else rest).append(parameter)
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build(model: nn.Module, stage) -> torch.optim.Optimizer:
    """The stage's optimizer (`stage.optimizer`: lamb, adamw or sgd) over the model's parameter groups."""
    groups = parameter_groups(model, stage.weight_decay)
    if stage.optimizer == "lamb":
        return Lamb(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps, clip_norm=stage.clip_norm)
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps, fused=True)
    return torch.optim.SGD(groups, lr=stage.lr, momentum=stage.momentum, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def update(optimizer: torch.optim.Optimizer, *, clip_norm: float | None, scaler: torch.amp.GradScaler) -> Tensor:
    """One step with the gradients at hand; returns their global norm before clipping, a scalar on the device.

    `clip_norm` is for AdamW and SGD: LAMB clips by itself. `scaler` may be a disabled one, which changes nothing.
    """
    scaler.unscale_(optimizer)
    norm = gradient_norm(optimizer)
    if isinstance(optimizer, Lamb):
        scaler.step(optimizer, grad_norm=norm)
    else:
        if clip_norm is not None:
            clip_grads_with_norm_(_with_gradients(optimizer), clip_norm, norm)
        scaler.step(optimizer)
    scaler.update()
    return norm


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar on the device."""
    norm = get_total_norm([parameter.grad for parameter in _with_gradients(optimizer)])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded gradients: summed over the ranks


def _with_gradients(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020) as Apex FusedLAMB does it, with bias correction and without NVLAMB:

        g <- g / max(|all gradients| / clip_norm, 1)
        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        u <- m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p
        p <- p - lr r u,   r = |p| / |u| where decay is not 0 (1 if either norm is 0), else 1

    The gradients may be overwritten with the clipped ones. A parameter's state is that of torch's fused Adam.
    """

    def __init__(self, params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip_norm=1.0):
        # `fused` tells torch, when it loads a state, that the step counters live on the parameters' device.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})
        self.clip_norm = clip_norm
        self.grad_norm = None  # of the last step, before clipping: a scalar on the device

    @torch.no_grad()
    def step(self, *, grad_norm: Tensor | None = None) -> None:
        """`grad_norm`: the global norm of all gradients, where the caller has it already."""
        self.grad_norm = gradient_norm(self) if grad_norm is None else grad_norm
        divisor = None
        if self.clip_norm is not None:
            divisor = (self.grad_norm / self.clip_norm).clamp(min=1.0).float()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["weight_decay"] == 0:
                self._adam(params, params, group, group["lr"], divisor)
            elif params:
                # Adam with rate -1 adds its direction to where it starts: from decay * p it arrives at u.
                updates = torch._foreach_mul(params, group["weight_decay"])
                self._adam(updates, params, group, -1.0, divisor)
                torch._foreach_addcmul_(params, updates, _trust_ratios(params, updates), value=-group["lr"])

    def _adam(self, targets, params, group, lr, divisor):
        """Updates the moments of `params` by their gradients / `divisor` and moves `targets`, tensors like `params`."""
        for p in params:
            if p not in self.state:
                steps = torch.zeros((), device=p.device)
                self.state[p] = {"step": steps, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state = [self.state[p] for p in params]
        adam(
            targets,
            [p.grad for p in params],
            [s["exp_avg"] for s in state],
            [s["exp_avg_sq"] for s in state],
            [],
            [s["step"] for s in state],
            fused=True,
            grad_scale=divisor,
            lr=lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )


def _trust_ratios(params, updates):
    weights, lengths = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, updates))
    return list(torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0).unbind())
