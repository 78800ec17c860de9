"""Augmentations: a file for each. declare.py says how one is declared, docs/augmentations.md how one is made."""

from ffcv_ops.augment.declare import augmentation, number, one_of, some_of, whole_number, written

__all__ = ["augmentation", "number", "one_of", "some_of", "whole_number", "written"]
