"""A resolution that rises within a stage: a model with patches goes on as it would from one stage to the next.

References: the same epochs written as stages; timm's resampling of position embeddings.
"""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed

import train_imagenet
from training.logging.records import read_rows
from training.network import adapt_weights, model

ROOT = Path(__file__).resolve().parents[1]

# Whole epochs in one step, without anything random, by an optimizer without a state: all that differs between a ramp
# and stages is the order of the images within the batch, and so the rounding of sums.
PLAIN = """
base: {base}
model: {{name: deit3_micro_patch16_224, layer_scale: 0.1}}
stage: {{epochs: 2, batch: 96, repeats: 1, crop: center, flip: 0, augment: none, jitter: none, mixup: 0, cutmix: 0,
        loss: ce, optimizer: sgd, momentum: 0, lr: 0.5, min_lr: 0.5, warmup_epochs: 0, schedule: step, ema: none}}
{stages}
speed: {{device: cpu, micro_batch: 96}}
log: {{every: 1, tensorboard: false, name: run}}
data: {{train: {beton}, val: {beton}, workers: 1}}
"""
STAGES = "stages: [{name: low, resolution: 32}, {name: high, resolution: 64}]"
RAMP = "stages: [{name: high, resolution: 64, ramp: [32, 1, 2], epochs: 4}]"


@pytest.fixture
def run(tmp_path, jpg_beton, monkeypatch):
    """run(stages, *words): trains, and gives the folder."""
    monkeypatch.setattr(train_imagenet.report, "write", lambda folder: "")

    def run(stages, *words):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        recipe = folder / "recipe.yaml"
        recipe.write_text(PLAIN.format(base=ROOT / "recipes/base.yaml", beton=jpg_beton, stages=stages))
        train_imagenet.main(["--cfg", str(recipe), f"--log.out={folder}", *words])
        return folder / "run"

    return run


def epochs(folder):
    return [row for row in read_rows(folder / "log.jsonl") if row["kind"] == "epoch"]


def test_a_ramp_is_the_same_as_stages(run):
    """Where these can say the same. The evaluation after each epoch is at the size of the training, as there."""
    ramp, stages = run(RAMP), run(STAGES)
    assert [row["resolution"] for row in epochs(ramp)] == [32, 32, 64, 64]
    for name in ("loss", "grad_norm", "val_loss"):
        assert [row[name] for row in epochs(ramp)] == pytest.approx([row[name] for row in epochs(stages)], rel=2e-5)
    one, other = (load_file(folder / "model.safetensors") for folder in (ramp, stages))
    assert one["pos_embed"].shape == (1, 16, 128)
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one | other)
    untrained = load_file(run(RAMP, "--stage.lr=1e-12", "--stage.min_lr=0") / "model.safetensors")
    assert (one["pos_embed"] - untrained["pos_embed"]).abs().max() > 1e-4


def test_the_average_ends_at_the_same_size(run):
    """With subsets too: the micro-batch is found anew while they are set."""
    folder = run(RAMP, "--stage.ema=0.5", "--stage.optimizer=adamw", "--stage.lr=1e-3", "--stage.min_lr=1e-3",
                 "--stage.drop_path=0.3", "--speed.drop_path=subset", "--speed.micro_batch=auto")  # fmt: skip
    average = load_file(folder / "model_ema.safetensors")
    assert average["pos_embed"].shape == (1, 16, 128)
    assert all("ema_top1" in row for row in epochs(folder))


def resampled(value, grid, mode):
    return resample_abs_pos_embed(value, list(grid), interpolation=mode, antialias=False, num_prefix_tokens=0)


@pytest.mark.parametrize("name", ["deit3_micro_patch16_224", "vit_small_patch16_rope_ape_224"])
def test_weights_and_moments_are_resampled(name):
    network = model.create(name, resolution=64, classes=3, drop_path=0.0, layer_scale=1e-4, args="depth=1")
    network.pos_embed.data.normal_()
    optimizer = torch.optim.AdamW([{"params": [network.pos_embed], "lr": 0.1}, {"params": network.head.parameters()}])
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    old = network.pos_embed
    kept = dict(optimizer.state[old])
    adapt_weights.set_resolution(network, 96, optimizer)
    new = network.pos_embed
    assert torch.allclose(new, resampled(old.detach(), (6, 6), "bicubic"), atol=1e-6)
    assert optimizer.param_groups[0]["params"] == [new] and old not in optimizer.state
    for moment in ("exp_avg", "exp_avg_sq"):
        given = optimizer.state[new][moment]
        assert torch.allclose(given, resampled(kept[moment], (6, 6), "bilinear"), atol=1e-7)
    assert (optimizer.state[new]["exp_avg_sq"] >= 0).all() and optimizer.state[new]["step"] == 1
    network(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert new.grad is not None and new.grad.shape == new.shape
    optimizer.step()


def test_what_is_not_kept_for_each_number_begins_anew():
    network = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=1)
    optimizer = timm.optim.Adafactor([network.pos_embed], lr=0.1)
    network(torch.randn(1, 3, 96, 96)).sum().backward()
    optimizer.step()
    assert any(value.shape != network.pos_embed.shape for value in optimizer.state[network.pos_embed].values()
               if torch.is_tensor(value) and value.ndim)  # fmt: skip
    adapt_weights.set_resolution(network, 64, optimizer)
    assert not optimizer.state
    assert network.pos_embed.shape == (1, 17, 192)  # the class token has a position, and keeps it


@pytest.mark.parametrize("pixels, places", [(39, 4), (47, 4), (48, 9)])
def test_what_is_left_over_of_a_patch_stays_unused(pixels, places):
    """As in the official code."""
    network = model.create("deit3_micro_patch16_224", resolution=32, classes=3, drop_path=0.0, layer_scale=1e-4)
    adapt_weights.set_resolution(network.eval(), pixels)
    image = torch.randn(1, 3, pixels, pixels)
    side = pixels // 16 * 16
    assert network.pos_embed.shape == (1, places, 128)
    logits = network(image)
    adapt_weights.set_resolution(network, side)
    assert torch.equal(logits, network(image[:, :, :side, :side]))


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--stage.eval_resolution=48"], "is evaluated at the size of its training; no eval_resolution"),
        (["--model.name=swin_tiny_patch4_window7_224"], "keeps its resolution; leave out ramp"),
        (["--speed.compile=true", "--speed.cuda_graphs=true"], "leave it out, or speed.cuda_graphs, speed.parallel"),
        (["--stage.ramp=8,1,2"], "cannot take images of 8 x 8 px"),
    ],
)
def test_what_does_not_go_with_a_ramp_is_refused(run, words, complaint, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(RAMP, *words)
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
