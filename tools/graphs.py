"""A network as a graph that needs none of its Python classes: torch.export's .pt2, and ONNX (extra `onnx`).

Both take float32 images (n, 3, side, side), any n, and give float32 logits (n, classes). What `load_*` returns is
called like the network.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from config.parser import part_of
from ffcv_ops.errors import UserError

ONNX_LIMIT = 2**31  # bytes: where a file of protocol buffers ends; larger weights go to model.onnx.data


def traced(network: nn.Module, side: int) -> torch.export.ExportedProgram:
    """The graph, with a free number of images."""
    example = torch.zeros(2, 3, side, side)  # torch.export takes a size of 0 or 1 for a constant
    with torch.inference_mode(False), torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)


def save_pt2(network: nn.Module, side: int, path: Path) -> None:
    torch.export.save(traced(network, side), path)


def load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def save_onnx(network: nn.Module, side: int, path: Path) -> None:
    """Writes an ONNX file; its input is called `images`, its output `logits`."""
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so in twenty lines)
    except ModuleNotFoundError:
        raise UserError("ONNX needs onnx, onnxscript and onnxruntime; install them with ./setup.sh onnx") from None
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    torch.onnx.export(
        traced(network, side), (), str(path), dynamo=True, verbose=False, external_data=size >= ONNX_LIMIT,
        input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "batch"},),
    )  # fmt: skip


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


if __name__ == "__main__":
    part_of("python -m tools.export")
