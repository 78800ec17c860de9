"""Learning from a teacher, as DeiT does (Touvron et al. 2021): `stage.distill` hard or soft.

A model with a distillation token (deit_*_distilled) learns the labels by its class token and the teacher by the other;
any other model learns both by its one output. The teacher sees the very pixels that the student sees.
"""

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config.schema import ModelConfig, StageConfig
from ffcv_ops.errors import UserError
from training.planning import cost


def load_teacher(model: ModelConfig, stage: StageConfig, classes: int) -> nn.Module:
    """The frozen network that `stage.teacher` names. UserError where it is not there, has other classes, or cannot take
    the images that `model` takes."""
    try:
        teacher = timm.create_model(stage.teacher.removeprefix("timm:"), pretrained=True)
    except Exception as error:  # an unknown name, no network, a broken cache: each has errors of its own
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"stage.teacher {stage.teacher}: timm cannot load it ({reason:.200})") from error
    known = teacher.pretrained_cfg
    if teacher.num_classes != classes:
        raise UserError(f"stage.teacher {stage.teacher} has {teacher.num_classes:,} classes, not {classes:,}")
    if (tuple(known["mean"]), tuple(known["std"])) != (model.mean, model.std):
        wanted = f"model.mean {list(known['mean'])}, model.std {list(known['std'])}"
        raise UserError(f"stage.teacher {stage.teacher} was trained with {wanted}; set these: both see the same")
    cost.check_resolution(teacher, stage.resolution)
    return teacher.eval().requires_grad_(False)


def separate_outputs(network: nn.Module) -> None:
    """Lets a model with a distillation token give (class logits, distillation logits) in training."""
    if hasattr(network, "set_distilled_training"):
        network.set_distilled_training(True)


def imitation_loss(logits: Tensor, teachers: Tensor, config: StageConfig) -> Tensor:
    """hard: cross-entropy with the teacher's first class. soft: the divergence of the two distributions at temperature
    `distill_tau`, as the official code scales it. Both (n, classes); a scalar, in float32."""
    logits, teachers, tau = logits.float(), teachers.float(), config.distill_tau
    if config.distill == "hard":
        return F.cross_entropy(logits, teachers.argmax(1))
    ours, theirs = (F.log_softmax(values / tau, dim=1) for values in (logits, teachers))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) * tau**2 / logits.numel()


def distilled_loss(outputs, teacher: nn.Module, inputs: Tensor, config: StageConfig, own_loss) -> Tensor:
    """`own_loss` of the class logits and the imitation of the teacher, weighted by `distill_alpha`."""
    own, imitating = outputs if isinstance(outputs, tuple) else (outputs, outputs)
    with torch.no_grad():
        teachers = teacher(inputs)
    alpha = config.distill_alpha
    return (1 - alpha) * own_loss(own) + alpha * imitation_loss(imitating, teachers, config)
