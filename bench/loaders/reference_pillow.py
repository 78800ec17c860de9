"""The transforms of the paper's code: torchvision's v1 transforms on Pillow images, in DataLoader workers. Batches:
uint8 [n, 3, size, size]."""

import random

from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from bench.loaders.files import Files, epochs_of
from bench.loaders.torchvision_steps import steps_of


def read(path):
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def gaussian_blur(image):
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def transform_of(task):
    three = [transforms.Grayscale(3), ImageOps.solarize, gaussian_blur]
    return transforms.Compose([*steps_of(task, transforms, three), transforms.PILToTensor()])


def prepare(task, data, *, batch, workers):
    return epochs_of(Files(data.files[task.split], read, transform_of(task)), batch=batch, workers=workers)
