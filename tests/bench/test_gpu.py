"""The checks of `make gpu-check`: on a GPU where there is one, and rehearsed on the CPU."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import report
from bench.gpu import __main__ as command
from bench.gpu import checks
from bench.gpu.profile import kind_of, profiled
from bench.step.baselines import QUICK, run_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
on_gpu = functools.partial(pytest.param, GPU, marks=pytest.mark.gpu)


def wrong(rows):
    assert rows
    return [row for row in rows if not checks.is_right(row)]


@pytest.mark.parametrize("device", [CPU, on_gpu()])
@pytest.mark.parametrize("check", [checks.bad_step, checks.checkpoint])
def test_a_bad_step_moves_nothing_and_a_checkpoint_is_whole(check, device):
    assert not wrong(check(device))


@pytest.mark.parametrize(
    ("device", "optimizer", "products", "keys"),
    [
        (CPU, "lamb", "bf16", {}),
        *(on_gpu(optimizer, products, {}) for optimizer in ("lamb", "adamw", "sgd") for products in ("fp32", "bf16")),
        on_gpu("lamb", "fp32", {"drop_path": "subset"}),
        on_gpu("lamb", "bf16", {"compiles": True}),
        on_gpu("lamb", "bf16", {"compiles": True, "drop_path": "subset"}),
    ],
)
def test_a_device_goes_where_the_cpu_goes(device, optimizer, products, keys):
    rows = checks.parity(device, (optimizer,), (products,), **keys)
    assert not wrong(rows)
    assert (rows[0]["value"] > 0) == (products == "bf16" or device == GPU)


@pytest.mark.gpu
def test_batches_of_a_device_that_is_behind(jpg_beton):
    assert not wrong(checks.loader(GPU, jpg_beton))


@pytest.mark.gpu
def test_deterministic_repeats_every_bit():
    assert not wrong(checks.repeatable(GPU))


@pytest.mark.gpu
def test_cuda_graphs_are_recorded_once():
    """Masks and weights keep their addresses, so that nothing is recorded again after the first steps."""
    from torch._inductor.cudagraph_trees import get_container

    torch.compiler.reset()
    run = run_of(checks.TINY, GPU, compiles=True, drop_path="subset")
    run = replace(run, recipe=replace(run.recipe, speed=replace(run.recipe.speed, cuda_graphs=True)))
    stage, losses = checks.trained(run, steps=5)
    manager = get_container(0).tree_manager
    recorded = repr(manager.graph_counter)
    assert recorded != "count(0)"
    for _ in range(10):
        checks.take_step(run, stage)
    assert repr(manager.graph_counter) == recorded
    assert losses == pytest.approx(checks.trained(run_of(checks.TINY, GPU, drop_path="subset"), steps=5)[1], rel=0.02)


def test_a_difference_is_seen():
    """A step more is another state, and other weights than allowed."""
    run = run_of(checks.TINY._replace(resolution=32, batch=8), CPU)
    one, other = (checks.trained(run, steps)[0] for steps in (1, 2))
    assert checks.differing(checks.state_of(one), checks.state_of(other)) > 100
    assert not checks.is_right(report.row("a", "b", 0.03, "of it", most=0.02))


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        ("triton_per_fused_native_layer_norm_3", "compiled by Triton"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<..., FusedAdamMathFunctor>",
         "optimizer, norms, average"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", "pointwise"),
        ("spin_kernel", "other"),
    ],
)  # fmt: skip
def test_kernels_have_a_kind(kernel, kind):
    assert kind_of(kernel) == kind


def test_a_profile_adds_up():
    rows = profiled(QUICK._replace(batch=4), CPU, drop_path="exact", compiles=False, steps=1)
    found = {row["name"]: row["value"] for row in rows}
    assert found["matrix products"] > 0
    assert found["kernels"] > 100
    assert found["speed"] == pytest.approx(4000 / found["step"])


def test_a_part_that_fails_or_is_late_does_not_stop_the_others(capsys):
    def spin():
        while True:
            pass

    good = report.row("x", "y", 1, "z")
    rows, failed = command.measure({"bad": (9, lambda: 1 / 0), "late": (1, spin), "good": (9, lambda: [good])})
    assert (rows, failed) == ([good], ["bad", "late"])
    assert "late: TimeoutError: 1 s are over" in capsys.readouterr().err


def test_results_of_both_commands_go_into_one_file_and_a_page(tmp_path):
    file, page = tmp_path / "gpu.json", tmp_path / "page.md"
    machine = {"device": "G", "libraries": {"torch": "9"}, "date": "today"}
    page.write_text(f"<!-- {command.MARKER} -->\n<!-- /{command.MARKER} -->\n")
    words = ["table", f"--json={file}", f"--markdown={page}"]
    assert command.main(words) == 0
    assert command.NOT_MEASURED in page.read_text()
    rows = [report.row("parity", "lamb", 0.5, "of it", most=0.1), report.row("S224", "ours", 1, "s")]
    command.written(rows, machine, file)
    command.written([report.row("S224", "ours", 2, "s")], machine, file)
    command.main(words)
    text = page.read_text()
    assert command.NOT_MEASURED not in text
    assert "WRONG, at most 0.1" in text
    assert [row["value"] for row in report.read_json(file)[1]] == [0.5, 2]
    command.written([report.row("S224", "ours", 3, "s")], machine | {"device": "other"}, file)
    assert len(report.read_json(file)[1]) == 1


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        command.main(["check"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_of_the_project_shows_what_its_file_says():
    page = (Path(report.RESULTS).parents[1] / "docs/performance.md").read_text()
    assert command.table(report.RESULTS / "gpu.json") in page
