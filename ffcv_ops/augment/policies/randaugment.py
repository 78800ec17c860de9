"""RandAugment in timm's reading (Cubuk et al. 2019; the official fine-tunes use `rand-m9-mstd0.5-inc1`).

`layers` operations, each drawn from all fifteen (the same one may come twice) and applied with `probability`, at a
magnitude from N(magnitude, deviation) clipped to 0..limit. timm 0.3.2, which the official runs used, differs only
where nobody goes: it took `inc0` for `inc1`, and knew neither `p`, `mmax` nor uniform magnitudes.
"""

import math
import re
from typing import NamedTuple

from ffcv_ops import rng
from ffcv_ops.augment import operations
from ffcv_ops.augment.declare import augmentation, written
from ffcv_ops.augment.from_timm import of_timm
from ffcv_ops.compiled import kernel
from ffcv_ops.errors import UserError

CHOICES = operations.IDENTITY  # operations 0..14: timm's fifteen


class Strength(NamedTuple):
    """What a configuration string says, with timm's defaults."""

    layers: int = 2
    probability: float = 0.5
    magnitude: float = 10.0
    deviation: float = 0.0  # of the magnitude; infinite: uniform on 0..magnitude
    limit: float = 10.0  # largest magnitude
    scale: int = operations.PLAIN  # or INCREASING


_SECTION = re.compile(r"(mstd|mmax|inc|m|n|p)([0-9]+(?:\.[0-9]+)?)")
_WHOLE = ("m", "n", "mmax", "inc")


def parse(config: str) -> Strength:
    """`rand-m9-mstd0.5-inc1` and the like -> its parameters; UserError says what is wrong with anything else.

    Sections, in any order: m magnitude, mstd its deviation (above 100: uniform), mmax its limit, n operations,
    p probability, inc 0 or 1. timm's `t` (other sets of operations) is not known here.
    """

    def refuse(reason):
        raise UserError(f"rand: config {config!r}: {reason}; write it like rand-m9-mstd0.5-inc1")

    name, *sections = config.split("-")
    if name != "rand":
        refuse("must begin with rand")
    values = {}
    for section in sections:
        match = _SECTION.fullmatch(section)
        if match is None:
            refuse(f"{section!r} is none of m, mstd, mmax, n, p, inc with a number")
        key, number = match[1], float(match[2])
        if key in values:
            refuse(f"{key} is given twice")
        if key in _WHOLE and not number.is_integer():
            refuse(f"{key} must be a whole number")
        values[key] = number
    if not 1 <= values.get("n", 2) <= rng.LAYERS:
        refuse(f"n must be 1 to {rng.LAYERS}")
    if values.get("p", 0.5) > 1.0:
        refuse("p is a probability, 0 to 1")
    if values.get("inc", 0) not in (0, 1):
        refuse("inc must be 0 or 1")
    deviation = values.get("mstd", 0.0)
    return Strength(
        layers=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
        magnitude=values.get("m", 10.0),
        deviation=math.inf if deviation > 100 else deviation,
        limit=values.get("mmax", 10.0) or 10.0,
        scale=operations.INCREASING if values.get("inc") else operations.PLAIN,
    )


@kernel
def magnitude(strength, key, layer):
    """The magnitude of this layer."""
    stream = rng.LAYER + 8 * layer + 2
    value = strength.magnitude
    if math.isinf(strength.deviation):
        value *= rng.uniform(key, stream)
    elif strength.deviation > 0.0:
        value += strength.deviation * rng.normal(key, stream)
    return min(max(value, 0.0), strength.limit)


@kernel
def choose(strength, layer, height, width, key):
    """The operation of this layer and its argument; IDENTITY where it is skipped."""
    stream = rng.LAYER + 8 * layer
    if rng.uniform(key, stream + 1) >= strength.probability:
        return operations.IDENTITY, 0.0
    op = rng.uniform_int(key, stream, CHOICES)
    negative = rng.uniform(key, stream + 4) < 0.5
    strong = magnitude(strength, key, layer)
    return op, operations.argument(op, strength.scale, strong, negative, height, width)


@augmentation(
    config=written("strength, in timm's notation", parse, default="rand-m9-mstd0.5-inc1", takes="like rand-m9-mstd0.5"),
    **of_timm(lambda options, *sample: [choose(options, k, *sample) for k in range(options.layers)]),
)
def rand(planes, options, key, scratch):
    """RandAugment: operations drawn from fifteen, at one magnitude."""
    _, height, width = planes.shape
    for layer in range(options.layers):
        op, value = choose(options, layer, height, width, key)
        operations.run(planes, op, value, options.interpolation, operations.MEAN_COLOR, scratch)
