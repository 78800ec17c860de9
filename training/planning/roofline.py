"""How long a training step takes on a GPU that is not at hand, and what an hour of it costs. Needs no torch.

A step of n samples is estimated as the sum of three terms:

products    6 operations per multiply-add, at the speed of a large matrix product times a share. The share grows with
            the network's intensity I, its multiply-adds per byte that the forward pass keeps: .93 I / (I + 108).
the rest    Each byte that the forward pass keeps is moved 3.4 times by compiled kernels (138 bytes for each token and
            channel of a ViT's block), and LAMB with the average moves 60 bytes a weight.
sending     1 ms that no kernel fills.

The constants were fitted to the estimate of ViT-S, B and L on an H200 in docs/performance.md, which this repeats within
a few per cent. That estimate was not confirmed on a GPU yet; take a quarter either way.

A CPU has the same terms, in float32: `bench.step` has measured a large matrix product on it, and the passes and the
update of ViT-S at 112 px, from which the two other speeds follow. docs/fast.md compares that with measured steps.
"""

import json
from typing import NamedTuple

from config.recipe import BASE_RECIPE
from config.schema import Recipe, StageConfig
from ffcv_ops import host
from ffcv_ops.errors import UserError
from training.planning.model_costs import ModelCosts

MEASURED = BASE_RECIPE.parents[1] / "bench" / "results"
SHARE, KNEE = 0.93, 108.0  # of the products' speed; multiply-adds per byte
MOVED, SUSTAINED = 3.4, 0.85  # times each kept byte is moved; share of a copy's bandwidth
UPDATE, SENDING = 60, 1e-3  # bytes per weight; seconds
SMALL = ModelCosts(22003048, 1099557888, 49, (0, 16917424), (43825152, 9393328))  # bench.step's S112: ViT-S, 112 px
SMALL_BATCH = 16
LOADING = {"rrc": ("A", "B"), "src": ("C", "C"), "center": ("E", "E")}  # tasks of bench.loader: plain, augmented


class Gpu(NamedTuple):
    """What a large matrix product and a copy reach, and euros per hour."""

    flops: float
    bandwidth: float  # bytes/s, read and written
    euros: float


def _published(tera_flops, tera_bytes, euros):
    """From the maker's numbers, of which an H200 reached .80 (788 of 989 TFLOP/s) and .90 (4.3 of 4.8 TB/s)."""
    return Gpu(0.80e12 * tera_flops, 0.90e12 * tera_bytes, euros)


# Dense bfloat16 (T4: float16) products with float32 sums. An hour on demand in 2026, in dollars that are taken for
# euros: RunPod's prices of November (A100, H100) and March (4090), Hyperstack's of August (H200), the cheapest T4 of
# huggingface.co/datasets/brian8808/gpu-price-index. Others ask up to four times as much.
GPUS = {
    "a100": _published(312, 2.04, 1.8),
    "h100": _published(989, 3.35, 4.0),
    "h200": _published(989, 4.8, 4.0),
    "4090": _published(165, 1.01, 0.6),
    "t4": _published(65, 0.32, 0.2),
}


def step_seconds(gpu: Gpu, costs: ModelCosts, samples: int, *, computed: float = 1.0) -> float:
    """Of a step with `samples` in one pass. computed: the share of them that a block computes."""
    kept = costs.saved_bf16[1]
    intensity = costs.macs / kept
    products = 6 * costs.macs * samples / (gpu.flops * SHARE * intensity / (intensity + KNEE))
    moved = (MOVED * kept * samples * computed + UPDATE * costs.parameters) / (SUSTAINED * gpu.bandwidth)
    return products * computed + moved + SENDING


def _cpu_step_seconds(costs, samples, computed):
    """The same on this machine; UserError where it was not measured."""
    measured = _measured_here()
    speed = measured["S112 ceiling", "matmul"] * 1e12 * SHARE
    passes = (measured["S112 forward", "exact"] + measured["S112 backward", "exact"]) / 1e3 / SMALL_BATCH
    per_byte = (passes - 6 * SMALL.macs / speed) / SMALL.saved_fp32[1]
    per_weight = measured["S112 optimizer", "exact"] / 1e3 / SMALL.parameters
    an_image = 6 * costs.macs / speed + per_byte * costs.saved_fp32[1]
    return an_image * samples * computed + per_weight * costs.parameters


def images_per_s(device: str, recipe: Recipe, stage: StageConfig, costs: ModelCosts, samples: int) -> float:
    """Training images per second on a GPU of `GPUS` or on `cpu`, this machine, with compiled blocks. UserError where
    this machine was not measured."""
    computed = 1 - stage.drop_path if recipe.speed.drop_path == "subset" else 1.0
    if device == "cpu":
        return samples / _cpu_step_seconds(costs, samples, computed)
    return samples / step_seconds(GPUS[device], costs, samples, computed=computed)


def euros(device: str) -> float:
    """An hour's price; 0 of a CPU, which is at hand."""
    return GPUS[device].euros if device in GPUS else 0.0


def _measured_here() -> dict[tuple[str, str], float]:
    """What bench.step has measured on this machine."""
    here = host.processor(), host.usable_cores()
    for path in sorted(MEASURED.glob("*.json")):
        machine, rows = _results(path.name)
        if (machine.get("cpu"), machine.get("cores")) == here and ("S112 backward", "exact") in rows:
            return rows
    raise UserError(
        f"--on=cpu: no file of {MEASURED} is of this machine, {here[1]} cores of {here[0]}; first run"
        f" python -m bench.step --tasks=S112 --json={MEASURED}"
    )


def loading_cores(stage: StageConfig, images_per_s: float) -> int | None:
    """Cores that decode and augment as many images; None where bench.loader's results are not here."""
    machine, rows = _results("loader.json")
    task = LOADING[stage.crop][stage.augment != "none" or stage.jitter is not None]
    return -int(-images_per_s * machine["cores"] // rows[task, "ours"]) if (task, "ours") in rows else None


def _results(name) -> tuple[dict, dict[tuple[str, str], float]]:
    """The machine, and values by (task, who) of a file of bench/results/; empty where it is not here."""
    try:
        found = json.loads((MEASURED / name).read_text(encoding="utf-8"))
        return found["machine"], {(row["task"], row["name"]): row["value"] for row in found["rows"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}, {}
