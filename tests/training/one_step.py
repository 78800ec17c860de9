"""One optimizer step on a batch at hand, as the training loop takes it."""

import torch

import train_imagenet
from training import optim


def take_step(run, stage, images, labels) -> tuple[float, float]:
    """Returns this rank's loss and the norm of all gradients."""
    loss = train_imagenet.forward_backward(run, stage, images, labels)
    norm, never = optim.gradient_norm(stage.optimizer), torch.zeros((), device=loss.device)
    optim.step(stage.optimizer, norm, clip_norm=stage.config.clip_norm, skip=never, average=stage.average)
    stage.step_in_epoch, stage.step = stage.step_in_epoch + 1, stage.step + 1
    return loss.item(), norm.item()
