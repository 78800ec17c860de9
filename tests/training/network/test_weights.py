"""Weights from outside. References: the very model, in float64; timm's own renaming.

Official files are imitated: a model's weights under the official names, with the Namespace that such files hold."""

import argparse
import json
import pathlib
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.deit import checkpoint_filter_fn
from torch import nn

from ffcv_ops.errors import UserError
from training.network import model, weights
from training.network.adapt_weights import load_weights


def network(name="deit3_micro_patch16_224", resolution=48, classes=10):
    torch.manual_seed(1)
    made = model.create(name, resolution=resolution, classes=classes, drop_path=0.0, layer_scale=0.3).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def official(state):
    """A state dict under the names of the official code."""
    return {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): value for key, value in state.items()}


@pytest.fixture
def image():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class WindowsFolder:
    """Is pickled as a path of another system is, which this one cannot make."""

    def __reduce__(self):
        return (pathlib.WindowsPath, ("C:", "runs"))


OPTIONS = argparse.Namespace(lr=4e-3, model="deit_small_patch16_LS")
BY_SUBMITIT = argparse.Namespace(output_dir=Path("/checkpoint/me/experiments/1"), opt_betas=(0.9, 0.95))
ON_WINDOWS = argparse.Namespace(output_dir=WindowsFolder())


@pytest.mark.parametrize(
    "extra",
    [{}, {"args": OPTIONS}, {"args": BY_SUBMITIT}, {"args": ON_WINDOWS, "epoch": 3, "lr_scheduler": {"last_epoch": 3}}],
    ids=["plain", "args", "submitit", "windows"],
)
def test_an_official_file_computes_what_it_did(tmp_path, image, extra):
    """Key by key: each gamma of a block goes to the branch that it scaled."""
    source, path = network().double(), tmp_path / "deit_3_small_224_1k.pth"
    torch.save({"model": official(source.state_dict()), **extra}, path)
    copy = model.create("deit3_micro_patch16_224", resolution=48, classes=10, drop_path=0.0, layer_scale=1e-4)
    load_weights(copy.double().eval(), weights.read(path))
    with torch.no_grad():
        assert torch.equal(copy(image), source(image))


def test_the_renaming_is_timms(tmp_path):
    made = network()
    content = {"model": official(made.state_dict())}
    torch.save(content, tmp_path / "x.pth")
    timms, ours = checkpoint_filter_fn(content, made, adapt_layer_scale=True), weights.read(tmp_path / "x.pth")
    assert timms.keys() == ours.keys()
    assert all(torch.equal(value, timms[key]) for key, value in ours.items())


def test_every_kind_of_file_and_folder(tmp_path):
    state = {key: value.contiguous() for key, value in network().state_dict().items()}
    run, ours, plain = tmp_path / "run", tmp_path / "last.pt", tmp_path / "plain.pth"
    run.mkdir()
    save_file(state, run / "model.safetensors")
    (run / "config.json").write_text(json.dumps({"architecture": "deit3_micro_patch16_224"}))
    torch.save({"format": 1, "model": state, "optimizer": {}, "step": 3}, ours)
    torch.save(state, plain)
    for source in (run, str(run), f"local-dir:{run}", run / "model.safetensors", ours, plain):
        read = weights.read(source)
        assert read.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in read.items())


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_that_timm_wrote(tmp_path, safe):
    made = timm.create_model("deit3_small_patch16_224", img_size=32, num_classes=5)
    timm.models.save_for_hf(made, tmp_path / "timm", model_config={"num_classes": 5}, safe_serialization=safe)
    read = weights.read(tmp_path / "timm")
    assert all(torch.equal(value, read[key]) for key, value in made.state_dict().items())


def test_what_is_beside_the_weights_becomes_nothing(tmp_path):
    """Tensors and plain values come out of a file, and empty stand-ins: not even a path is made."""
    torch.save({"model": network().state_dict(), "args": BY_SUBMITIT}, tmp_path / "x.pth")
    content = weights._unpickled(tmp_path / "x.pth")
    assert type(content["args"]) is weights._StandIn
    assert vars(content["args"]) == {}


def state():
    return {key: value.contiguous() for key, value in network().state_dict().items()}


def compiled(state):
    """Names as torch.compile makes them of blocks that were compiled one by one."""
    return {re.sub(r"^(blocks\.\d+)", r"\1._orig_mod", key): value for key, value in state.items()}


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: {"state_dict": s, "epoch": 3}, ["its state_dict"]),
        (lambda s: {"model_ema": s}, ["its model_ema"]),
        (lambda s: {"state_dict_ema": s, "arch": "x"}, ["its state_dict_ema"]),
        (lambda s: {"model": s, "model_ema": {key: value + 1 for key, value in s.items()}}, []),
        (lambda s: prefixed("module.", s), ["module."]),
        (lambda s: {"model": prefixed("_orig_mod.", s)}, ["_orig_mod."]),
        (lambda s: {"state_dict": prefixed("module._orig_mod.", s)}, ["its state_dict", "is taken off"]),
        (lambda s: prefixed("_orig_mod.module.", s), ["is taken off"]),
        (compiled, ["is taken off"]),
        (lambda s: s, []),
    ],
)
def test_weights_in_other_wrappings_are_taken_and_that_is_said(make, words, tmp_path):
    torch.save(make(state()), tmp_path / "x.pt")
    said = []
    read = weights.read(tmp_path / "x.pt", said.append)
    assert read.keys() == state().keys()
    assert all(torch.equal(value, read[key]) for key, value in state().items())
    assert len(said) == len(words)
    assert all(word in line and str(tmp_path / "x.pt") in line for word, line in zip(words, said, strict=True))


def test_prefixed_safetensors_are_taken_too(tmp_path):
    save_file(prefixed("_orig_mod.", state()), tmp_path / "x.safetensors")
    assert weights.read(tmp_path / "x.safetensors").keys() == state().keys()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_what_cannot_be_used_is_said_in_one_line(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    (tmp_path / "bad.pth").write_bytes(b"nonsense")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    torch.save({"optimizer": {"a": 1}}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": network().state_dict(), "args": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    torch.save({0: torch.ones(2), 1: torch.ones(2)}, tmp_path / "numbers.pth")
    torch.save({"model": {"a": torch.ones(2).to_sparse()}}, tmp_path / "sparse.pth")
    torch.save({"model": {"a": torch.ones(2, dtype=torch.complex64)}}, tmp_path / "complex.pth")
    torch.save({"model": {"state_dict": {"a": torch.ones(2)}}}, tmp_path / "nested.pth")
    torch.save({"a": torch.ones(2), "b": None}, tmp_path / "none.pth")
    torch.save({"model": {"a": torch.empty(2, device="meta")}}, tmp_path / "meta.pth")
    torch.save({"model": {"a": torch.ones(2)}, "args": OPTIONS, "net": nn.Linear(1, 1)}, tmp_path / "whole.pth")
    for name, words in {
        "nothing.pth": "no such file; --init takes",
        "bad.safetensors": "cannot be read as weights",
        "bad.pth": "cannot be read as weights .it is not of torch.save",
        "empty.pth": "no weights under the key `model`",
        "other.pth": "no weights under the key `model`",
        "list.pth": "cannot be read as weights",
        "hostile.pth": "holds more than tensors and plain values, which are not loaded",
        "numbers.pth": "a weight's name is 0, which is no text",
        "sparse.pth": "a is not a plain tensor",
        "complex.pth": "a is not a plain tensor",
        "nested.pth": "no weights under the key `model`",
        "none.pth": "no weights under the key `model`",
        "meta.pth": "a is not a plain tensor",
        "whole.pth": "which are not loaded: .*torch.nn.modules.linear.Linear.*; save its weights alone",
        ".": "no such file",
    }.items():
        with pytest.raises(UserError, match=words) as refusal:
            weights.read(tmp_path / name)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_without_a_network_a_models_name_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("timm:deit3_small_patch16_224.fb_in1k", "hf-hub:timm/deit3_small_patch16_224.fb_in1k", "timm:vit_x"):
        with pytest.raises(UserError, match="cannot fetch") as refusal:
            weights.read(name)
        assert "\n" not in str(refusal.value)


def test_a_models_name_is_handed_to_timm(monkeypatch):
    asked, made = [], network()
    monkeypatch.setattr("timm.create_model", lambda name, pretrained: asked.append((name, pretrained)) or made)
    assert weights.read("timm:a.b").keys() == made.state_dict().keys()
    assert asked == [("a.b", True)]


def test_of_a_hub_two_files_of_one_revision_are_read(monkeypatch, tmp_path):
    state = {key: value.contiguous() for key, value in network().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"label_names": ["cat", "dog"]}))
    asked = []

    def fetch(repository, file, revision):
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert weights.read("hf-hub:c/d@1a2b").keys() == state.keys()
    assert weights.class_names("hf-hub:c/d") == ("cat", "dog")
    assert asked == [("c/d", "model.safetensors", "1a2b"), ("c/d", "config.json", None)]


def test_class_names_of_a_model_folder(tmp_path):
    config = tmp_path / "config.json"
    assert weights.class_names(tmp_path) is None
    assert weights.class_names("timm:a.b") is None
    for content, names in (
        ({"label_names": ["a", "b"]}, ("a", "b")),
        ({"label_names": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"pretrained_cfg": {"label_names": ["a"]}}, ("a",)),
        ({"architecture": "resnet50"}, None),
    ):
        config.write_text(json.dumps(content))
        assert weights.class_names(f"local-dir:{tmp_path}") == names
    for damaged in ("[1", "[1]", '{"label_names": {"1": "a"}}'):
        config.write_text(damaged)
        with pytest.raises(UserError, match=r"not the config|no list of label_names"):
            weights.class_names(tmp_path)
