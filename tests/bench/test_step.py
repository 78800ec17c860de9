"""The step benchmark: contenders that train, numbers that add up, the table."""

import copy
import json

import pytest
import torch

from bench import gpu, report, step, table
from training import distributed, model

CPU = torch.device("cpu")
TINY = step.QUICK._replace(batch=16, drop_path=0.45)


@pytest.mark.parametrize("name", ["ours", "exact", "reference", "timm-eager"])
def test_each_contender_trains_and_marks_its_phases(name, monkeypatch):
    """Weights and averages move, the loss of a batch shown again and again falls; each phase is marked once a step."""
    if name == "timm-eager":
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)
        name = "timm-compiled"
    torch.manual_seed(0)
    clock = step.Clock(CPU)
    made = step.contender(name, TINY, compiles=False, device=CPU, mark=clock)
    network = made.state.model if hasattr(made, "state") else getattr(made, "network", made.model)
    averages = made.state.average if hasattr(made, "state") else made.average.module
    images, labels = step.random_batch(made.job, made.job.run.stages[0], 16)
    before = [copy.deepcopy(kept.state_dict()) for kept in (network, averages)]
    for _ in range(3):
        clock("start")
        made(*made.prepare(images, labels))
    steps = clock.phases()
    assert [set(one) for one in steps] == [{*step.PHASES, "step"}] * 3
    assert all(one["step"] == pytest.approx(sum(one[phase] for phase in step.PHASES)) for one in steps)
    for kept, start in zip((network, averages), before, strict=True):
        moved = [key for key, value in kept.state_dict().items() if not torch.equal(value, start[key])]
        assert len(moved) > 0.9 * len(start)


def test_the_reference_masks_and_does_not_fuse():
    made = step.contender("reference", TINY, compiles=False, device=CPU, mark=lambda phase: None)
    assert not any(block.attn.fused_attn for block in made.model.blocks)
    assert {block.drop_path2.drop_prob for block in made.model.blocks} == {0.45}
    assert made.optimizer.defaults["foreach"] is False


def test_multiply_adds_leave_out_what_a_subset_leaves_out():
    """9 of 16 samples go through the blocks: against torch's counter on the two parts."""
    whole, part = (step.macs(TINY, subset=subset) for subset in (False, True))
    network = model.create(TINY.model, resolution=TINY.resolution, classes=1000, drop_path=0.0, layer_scale=1e-4)
    assert whole == pytest.approx(model.macs(network, TINY.resolution))
    outside = (9 * 16 * 16 * 3 * 128 + 1000 * 128) / 1e9  # patch embedding and head
    assert part == pytest.approx(outside + (whole - outside) * 9 / 16, rel=1e-6)


def test_a_matrix_product_is_timed():
    product = step.Matmul(CPU, torch.float32)
    product.one = product.other = torch.ones(64, 64)
    product.size = 64
    assert 0 < product() < 1e15


def test_the_command_prints_tables_and_writes_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "QUICK", TINY._replace(batch=4))
    step.main(["--quick", "--json", str(tmp_path / "x.json"), "--device", "cpu"])
    machine, rows = report.read_json(tmp_path / "x.json")
    assert (machine["device"], machine["cores"] > 0) == ("CPU", True)
    found = {(row["task"], row["name"]): row for row in rows}
    for who in ("ours", "exact", "reference"):
        assert found["quick", who]["unit"] == "images/s"
        assert found["quick ratio", who]["unit"] == "times ours"
        assert 0 < found["quick share", who]["value"] < 200
    assert found["quick ratio", "ours"]["value"] == 1
    assert {"ours", "timm", "timm-foreach", "timm-loop"} == {name for task, name in found if task.startswith("LAMB")}
    printed = capsys.readouterr().out
    assert "| ours " in printed
    assert "quick ceiling: matmul" in printed


def test_a_machine_without_a_gpu_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "there is none here" in said


def test_the_table_has_what_was_measured_and_says_what_was_not(tmp_path, monkeypatch):
    rows = [report.row("S112", "ours", [20.0], "images/s"), report.row("S112", "reference", [10.0], "images/s"),
            report.row("S112 ratio", "reference", [2.0], "times ours"), report.row("LAMB small", "ours", [4.0], "ms"),
            report.row("LAMB small", "timm", [12.0], "ms")]  # fmt: skip
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    report.write_json(tmp_path / "cpu.json", {"device": "CPU", "cores": 2, "cpu": "X"}, rows)
    (tmp_path / "other.json").write_text(json.dumps({"machine": {"cpu": "Y"}, "rows": []}))
    grid = table.grid(table.results())
    assert grid.header[1:] == ["2 cores of X", "GPU"]
    cells = {line[0]: line[1:] for line in grid.lines}
    assert cells[f"{step.TASKS['S112'].title}: reference"] == ["10 (2.00x)", "not measured"]
    assert cells[f"{step.TASKS['B192'].title}: ours"] == ["not measured", "not measured"]
    assert cells["LAMB, ViT-S/16: timm's time / ours"] == ["3.0x", "not measured"]


def test_ranks_are_one(tmp_path):
    """The benchmark's job is that of one process, whatever the environment says."""
    job = step.job_of(TINY, drop_path="subset", compiles=False, device=CPU)
    assert job.ranks == distributed.Ranks(0, 0, 1, CPU)
    assert job.run.stages[0].batch == job.share(job.run.stages[0]) == 16
