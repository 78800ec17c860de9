"""The transforms of the paper's code: torchvision's v1 transforms on Pillow images, in DataLoader workers. Batches:
uint8 [n, 3, size, size]."""

import random

from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from bench.loaders.files import Files, epochs_of
from bench.tasks import JITTER

BICUBIC = InterpolationMode.BICUBIC


def read(path):
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def solarize(image):
    return ImageOps.solarize(image)


def gaussian_blur(image):
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def crop_of(task):
    return {
        "rrc": lambda: [transforms.RandomResizedCrop(task.size, interpolation=BICUBIC)],
        "src": lambda: [
            transforms.Resize(task.size, interpolation=BICUBIC),
            transforms.RandomCrop(task.size, padding=4, padding_mode="reflect"),
        ],
        "center": lambda: [transforms.Resize(task.size, interpolation=BICUBIC), transforms.CenterCrop(task.size)],
    }[task.crop]()


def transform_of(task):
    steps = crop_of(task)
    if task.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if task.augment == "three":
        three = transforms.RandomChoice([transforms.Grayscale(3), solarize, gaussian_blur])
        steps += [three, transforms.ColorJitter(JITTER, JITTER, JITTER)]
    elif task.augment != "none":
        steps.append({"rand": transforms.RandAugment, "auto": transforms.AutoAugment,
                      "trivial": transforms.TrivialAugmentWide}[task.augment]())  # fmt: skip
    return transforms.Compose([*steps, transforms.PILToTensor()])


def prepare(task, data, *, batch, workers):
    return epochs_of(Files(data.files[task.split], read, transform_of(task)), batch=batch, workers=workers)
