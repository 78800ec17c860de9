"""A task in the words that torchvision's transforms, version 1 and `v2`, have in common. module: the one or the other.
three: its grayscale, solarize and blur."""

from bench.tasks import JITTER


def steps_of(task, module, three):
    flip = [module.RandomHorizontalFlip()] if task.flip else []
    return [*crop_of(task, module), *flip, *augmentations_of(task, module, three)]


def crop_of(task, module):
    bicubic = module.InterpolationMode.BICUBIC
    if task.crop == "rrc":
        return [module.RandomResizedCrop(task.size, interpolation=bicubic)]
    resize = module.Resize(task.size, interpolation=bicubic)
    if task.crop == "src":
        return [resize, module.RandomCrop(task.size, padding=4, padding_mode="reflect")]
    return [resize, module.CenterCrop(task.size)]


def augmentations_of(task, module, three):
    if task.augment == "none":
        return []
    if task.augment == "three":
        return [module.RandomChoice(three), module.ColorJitter(JITTER, JITTER, JITTER)]
    policies = {"rand": module.RandAugment, "auto": module.AutoAugment, "trivial": module.TrivialAugmentWide}
    return [policies[task.augment]()]
