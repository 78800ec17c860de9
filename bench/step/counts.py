"""What a training step asks of a GPU, counted without one: launches, bytes of pointwise work, copies, compilations.

    python -m bench.step.counts --json bench/results/step_counts.json --markdown docs/performance.md
    python -m bench.step.counts --table --markdown docs/performance.md

Per step of 256 images under bfloat16 autocast. Single operations are counted on fake tensors. For the compiled step the
blocks' and the mixing's operations give way to what Inductor makes of them, on a CPU: what it fuses there is close to
what it fuses for a GPU, not the same. A multi-tensor operation counts as many launches as torch's kernel for it makes
(65,536 elements a chunk, 320 chunks or so many tensors a launch). Bytes: read and written by all that is neither a
matrix product, nor a convolution, attention or the optimizer. Kernels written in Triton run on a GPU only: on these
CPU paths their work is counted as the operations that stand in for them.
"""

import contextlib
import functools
import math
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._functorch import config as functorch
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.scheduler import NopKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import report
from bench.step.baselines import QUICK, TASKS, begun, forward_backward, run_of, update
from bench.step.measure import CPU
from config.parser import Parser
from ffcv_ops import mixing
from ffcv_ops.errors import exits_cleanly
from training import distributed, optim
from training.memory.micro_batch import random_batch
from training.network.stochastic_depth import DepthMasks

MARKER = "bench.step.counts"
MODELS = {
    "S": TASKS["S224"],
    "B": TASKS["B192"],
    "L": TASKS["B192"]._replace(title="ViT-L/16", model="deit3_large_patch16_224", drop_path=0.45),
}
CHUNK, CHUNKS, TENSORS = 65_536, 320, {1: 110, 2: 64, 3: 48, 4: 36}  # of torch's multi-tensor kernels; 5 lists: 30
HEAVY = ("mm", "bmm", "addmm", "baddbmm", "convolution", "convolution_backward", "_scaled_dot_product")
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view", "lift_fresh")
COMPILED_BATCH = 32  # of which `subset` leaves one out at a rate of .05
AS_ON_A_GPU = functools.partial(get_total_norm, foreach=True)


class Counted(TorchDispatchMode):
    """Launches and bytes of the operations within, one after the other as eager torch runs them."""

    def __init__(self):
        super().__init__()
        self.launches, self.bytes = Counter(), 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        lists = [value for value in args if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)]
        fused = name.startswith("_fused")  # has no kernel for fake tensors, and returns nothing
        result = None if fused else op(*args, **(kwargs or {}))
        if fused or name.startswith("_foreach"):
            self.launches["multi-tensor"] += launches_of(lists)
        elif op.namespace == "aten" and not op.is_view and name not in FREE:
            kind = "heavy" if name.startswith(HEAVY) else "pointwise"
            self.launches[kind] += 1
            if kind == "pointwise":
                leaves = tree_leaves((args, kwargs, result))
                self.bytes += sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
        return result


def launches_of(lists: list) -> int:
    """Of a multi-tensor operation on these lists. Lists of unlike shapes go tensor by tensor."""
    if any(one.shape != other.shape for other in lists[1:] for one, other in zip(lists[0], other, strict=False)):
        return len(lists[0])
    chunks = sum(math.ceil(tensor.numel() / CHUNK) for tensor in lists[0])
    return max(math.ceil(len(lists[0]) / TENSORS.get(len(lists), 30)), math.ceil(chunks / CHUNKS), 1)


@contextlib.contextmanager
def fake_stage(task, drop_path: str):
    """A run and a stage whose weights are fake tensors; so are all that are made within."""
    run = run_of(task, CPU, drop_path=drop_path, products="bf16")
    rates = mock.patch.object(vision_transformer, "calculate_drop_path_rates", lambda rate, depth, **_: [rate] * depth)
    weights = mock.patch.object(nn.init, "trunc_normal_")
    moved = mock.patch.object(nn.Module, "to", lambda module, *_, **__: module)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with rates, weights, moved:  # which read or swap tensors
            stage = begun(run)
        yield run, stage


def eager(task, drop_path: str, *, blocks: bool = True) -> tuple[Counted, Counted, int]:
    """What both halves of a step launch, gradients and update, and its copies to a device with those of images and
    labels, which the loader sends. blocks: with the model's blocks, or what is left without."""
    sent = []

    def counting(copy):
        return lambda *given: (sent.append(given), copy(*given))[1]

    with (
        fake_stage(task, drop_path) as (run, stage),
        mock.patch.multiple(optim, CPU_TOGETHER=optim.GPU_TOGETHER, get_total_norm=AS_ON_A_GPU),
        mock.patch.object(distributed, "to_device", counting(distributed.to_device)),
        mock.patch.object(DepthMasks, "_copy", counting(DepthMasks._copy)),
    ):
        if not blocks:
            stage.model.blocks = stage.ema.blocks = nn.Sequential()
            stage.optimizer = optim.build(stage.model, stage.config)
        batch = random_batch(run, stage.config, task.batch)
        for _ in range(2):  # the first step makes moments
            sent.clear()
            with Counted() as gradients:
                loss = forward_backward(run, stage, *batch)
            with Counted() as updated:
                update(stage, loss)
    return gradients, updated, 2 + sum(given[0] is not None for given in sent)


def mixing_alone(task) -> Counted:
    run = run_of(task, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True), Counted() as found:
        _mix(mixing.mix, run, task.batch)
    return found


def _mix(mix, run, samples):
    config = run.recipe.stages[0]
    how = mixing.Mixing(config.mixup, config.cutmix, config.mix_chunk)
    rows = mixing.mix_params(how, 0, 0, resolution=config.resolution, first=0, samples=samples)
    images, labels = random_batch(run, config, samples)
    mix(images, labels, rows, classes=1000, smoothing=0.0)


@contextlib.contextmanager
def inductors_graphs():
    """A list that gets (launches, bytes of pointwise work) of each graph that Inductor makes within. The C++ compiler
    is not called, and what would be its kernels do nothing."""
    graphs, compile_ = [], GraphLowering.compile_to_module

    def compiled(graph):
        module = compile_(graph)
        nodes = [node for node in graph.scheduler.nodes if not isinstance(node, NopKernelSchedulerNode)]
        nodes = [node for node in nodes if not isinstance(getattr(node, "node", None), MultiOutput)]  # parts of others
        own = [node for node in nodes if not node.is_extern()]
        graphs.append((len(nodes), sum(node.get_read_write_buffers_sizes() for node in own)))
        return module

    idle = mock.patch.object(AsyncCompile, "cpp_pybinding", lambda *_, **__: lambda *_: None)
    fresh, too = torch._inductor.config.patch(fx_graph_cache=False), functorch.patch(enable_autograd_cache=False)
    with fresh, too, idle, mock.patch.object(GraphLowering, "compile_to_module", compiled):
        yield graphs


def compiled(task, drop_path: str) -> dict[str, tuple[int, float]]:
    """(launches, bytes) of Inductor's kernels for the mixing of a batch and for one block, forward and backward."""
    small, found = task._replace(batch=COMPILED_BATCH), {}
    with fake_stage(small, drop_path) as (run, stage):
        block = stage.model.blocks[0]
    for module in block.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.zeros(weight.shape)))
    stage.drop_path_masks.set(seed=0, step=0, first=0, samples=COMPILED_BATCH, device=CPU)
    tokens = (task.resolution // 16) ** 2 + 1
    torch.compiler.reset()
    with inductors_graphs() as graphs:
        block.compile(dynamic=False)
        inputs = torch.randn(COMPILED_BATCH, tokens, block.norm1.normalized_shape[0], requires_grad=True)
        with run.autocast():
            result = block(inputs)
        result.sum().backward()
        found["block"] = tuple(map(sum, zip(*graphs, strict=True)))
        graphs.clear()
        _mix(torch.compile(mixing.mix, dynamic=False), run, COMPILED_BATCH)
        found["mixing"] = tuple(map(sum, zip(*graphs, strict=True)))
    scale = task.batch / COMPILED_BATCH
    return {name: (launches, scale * moved) for name, (launches, moved) in found.items()}


def compilations() -> list[dict]:
    """Graphs, breaks and recompilations of twelve stages at other resolutions, and three steps of each."""
    torch.compiler.reset()
    counters.clear()
    own = torch.compile
    with mock.patch.object(torch, "compile", functools.partial(own, backend="eager")):
        for resolution in range(16, 16 * 13, 16):
            run = run_of(QUICK._replace(resolution=resolution, batch=4), CPU, compiles=True)
            stage = begun(run)
            made = counters["stats"]["unique_graphs"]
            for _ in range(3):
                update(stage, forward_backward(run, stage, *random_batch(run, stage.config, 4)))
            assert counters["stats"]["unique_graphs"] == made, "a step compiled anew"
    return [
        report.row("12 stages", "graphs", counters["stats"]["unique_graphs"], "graphs"),
        report.row("12 stages", "graph breaks", sum(counters["graph_break"].values()), "breaks"),
    ]


def host_time() -> list[dict]:
    """Processor time of one thread for steps so small that only launching them counts: 6 blocks, 16 images of 16 px."""
    torch.set_num_threads(1)
    rows, task = [], QUICK._replace(resolution=16)
    for drop_path in ("exact", "subset"):
        run = run_of(task, CPU, drop_path=drop_path)
        stage, times = begun(run), []
        batch = random_batch(run, stage.config, task.batch)
        for _ in range(30):
            began = time.process_time()
            update(stage, forward_backward(run, stage, *batch))
            times.append(1000 * (time.process_time() - began))
        rows.append(report.row("host", f"6 blocks, eager, {drop_path}", times[5:], "ms"))
    return rows


def counted(name: str) -> list[dict]:
    """The rows of a model."""
    task, rows = MODELS[name], []
    depth, mixed = {"S": 12, "B": 12, "L": 24}[name], mixing_alone(task)
    for drop_path in ("exact", "subset"):
        gradients, updated, copies = eager(task, drop_path)
        rest, _, _ = eager(task, drop_path, blocks=False)
        made = compiled(task, drop_path)
        once, update_launches = gradients.launches.total(), updated.launches.total()
        outside = rest.launches.total() - mixed.launches.total()
        launches = outside + depth * made["block"][0] + made["mixing"][0]
        moved = rest.bytes - mixed.bytes + depth * made["block"][1] + made["mixing"][1]
        rows += [
            report.row(name, f"launches, eager, {drop_path}", once + update_launches, "launches"),
            report.row(name, f"launches, compiled, {drop_path}", launches + update_launches, "launches"),
            report.row(name, f"of these the optimizer and the average, {drop_path}", update_launches, "launches"),
            report.row(name, f"pointwise, eager, {drop_path}", gradients.bytes / 1e9, "GB"),
            report.row(name, f"pointwise, compiled, {drop_path}", moved / 1e9, "GB"),
            report.row(name, f"copies to the device, {drop_path}", copies, "copies"),
        ]
    return rows


def table(path: Path) -> str:
    """A line for what was counted, a column for each model."""
    if not path.exists():
        return "Not counted yet.\n"
    _, rows = report.read_json(path)
    found = {(row["task"], row["name"]): row for row in rows}
    names = dict.fromkeys(row["name"] for row in rows if row["task"] in MODELS)
    lines = [[name, *(_cell(found, model, name) for model in MODELS)] for name in names]
    text = report.markdown(report.Grid("", ["per step", *(task.title for task in MODELS.values())], lines))
    others = [key for key in found if key[0] not in MODELS]
    return f"{text}\n{'; '.join(f'{task}, {name}: {_cell(found, task, name)}' for task, name in others)}.\n"


def _cell(found, task, name) -> str:
    row = found.get((task, name))
    if row is None:
        return "-"
    return f"{row['value']:,.4g}" + ("" if row["unit"] in ("launches", "copies") else f" {row['unit']}")


@exits_cleanly
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--json", type=Path, default=report.RESULTS / "step_counts.json", help="%(default)s")
    parser.add_argument("--table", action="store_true", help="count nothing: show what the file has")
    parser.add_argument("--markdown", type=Path, help=f"put the table into this file, between <!-- {MARKER} --> marks")
    options = parser.parse_args(argv)
    if not options.table:
        rows = [row for name in MODELS for row in counted(name)]
        report.tell([], rows + compilations() + host_time(), options.json)
    if options.markdown:
        report.replace_between(options.markdown, MARKER, table(options.json))
    else:
        print(table(options.json))


if __name__ == "__main__":
    main()
