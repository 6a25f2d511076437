"""The image encoder: a frozen tower maps pixels to patch features (B, N, V), and a trained layer norm follows.

The published model uses OpenAI's CLIP ViT-L/14 without its last block; `mini` uses EfficientNet-Lite0 up to block 10,
and its models for captions and search use the whole network.
Any tower that returns patch features will do. The layer norm is `ln_vision` in the published code.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from blip_diffusion.errors import ConfigError
from blip_diffusion.modules.efficientnet_lite import HEAD_WIDTH, EfficientNetLite
from blip_diffusion.modules.qformer import place_features


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Shapes of the image encoder; the defaults are the published ones.

    The six after `norm_eps` are for `clip` and `blip2` only.
    """

    tower: Literal["clip", "blip2", "efficientnet-lite0", "efficientnet-lite0-full", "timm"] = "clip"
    colour_cell: int = 4  # side in pixels of the cells whose mean colours `efficientnet-lite0` returns: 2 or 4
    timm_name: str = ""  # for the tower `timm` only, for example "vit_small_patch14_dinov2"
    image_size: int = 224
    eps: float = 1e-5
    norm_eps: float | None = None  # of the layer norm after the tower; None: `eps`
    width: int = 1024
    layers: int = 23
    heads: int = 16
    inner: int = 4096
    patch: int = 14
    activation: str = "quick_gelu"


class Tower(Protocol):
    """A frozen network from pixels (B, 3, S, S) to features (B, N, width)."""

    width: int

    def __call__(self, pixels: Tensor) -> Tensor: ...

    def check_side(self, side: int) -> None:
        """Raise `ConfigError` for images of a side S that the tower cannot read."""


class ImageEncoder(nn.Module):
    """A frozen tower and a trainable layer norm over its features."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = build_tower(config)
        self.norm = nn.LayerNorm(self.tower.width, eps=config.eps if config.norm_eps is None else config.norm_eps)
        self.freeze()

    @property
    def width(self) -> int:
        """Number of features V of a patch."""
        return self.norm.normalized_shape[0]

    def freeze(self) -> None:
        """Freeze the tower and disable its dropout."""
        self.tower.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ImageEncoder":
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) to features (B, N, V)."""
        normed: Tensor = self.norm(self.features(pixels))
        return normed

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return the frozen tower's features before the trained layer norm; they can be cached."""
        features: Tensor = self.tower(pixels)
        return features


def build_tower(config: ImageEncoderConfig) -> Any:
    """Build the tower of a configuration, with random weights."""
    match config.tower:
        case "clip":
            return _clip_tower(config)
        case "blip2":
            return _blip2_tower(config)
        case "efficientnet-lite0":
            return EfficientNetTower(config.colour_cell)
        case "efficientnet-lite0-full":
            return EfficientNetFullTower()
        case "timm":
            return TimmTower(config.timm_name)
    raise ConfigError(
        f"image encoder: there is no tower {config.tower!r}; use clip, blip2, efficientnet-lite0, "
        "efficientnet-lite0-full or timm."
    )


class TransformersTower(nn.Module):
    """A vision transformer of transformers, without its last layer norm: class token and patches, N = (S / patch)² + 1.

    Args:
        vision: The network.
    """

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.width = int(vision.config.hidden_size)
        self.vision = vision
        self.vision.post_layernorm = nn.Identity()

    def check_side(self, side: int) -> None:
        if side != self.vision.config.image_size:
            raise ConfigError(f"this image encoder reads images of {self.vision.config.image_size} pixels, not {side}.")

    def forward(self, pixels: Tensor) -> Tensor:
        states: Tensor = self.vision(pixel_values=pixels).last_hidden_state
        return states


def _clip_tower(config: ImageEncoderConfig) -> TransformersTower:
    """Build CLIP's tower up to its last hidden state; its last layer norm is for the pooled output only."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return TransformersTower(CLIPVisionModel(CLIPVisionConfig(**_transformers_shapes(config))))


def _blip2_tower(config: ImageEncoderConfig) -> TransformersTower:
    """Build BLIP-2's EVA ViT-g/14 (Fang et al. 2022); its last layer norm is trained, and is `ImageEncoder.norm`."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    shapes = _transformers_shapes(config)
    return TransformersTower(Blip2VisionModel(Blip2VisionConfig(**shapes, initializer_range=0.02)))


def _transformers_shapes(config: ImageEncoderConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "hidden_act": config.activation,
        "layer_norm_eps": config.eps,
    }


class GridTower(nn.Module):
    """Base of the towers of EfficientNet-Lite0: standardised features of each patch, and a position embedding.

    Args:
        network: The network of the features.
        patch: Side of a patch in pixels.
        features: Number of features of a patch before the position embedding.
    """

    places = 32

    def __init__(self, network: EfficientNetLite, *, patch: int, features: int) -> None:
        super().__init__()
        self.network, self.patch = network, patch
        self.width = features + self.places
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.mean: Tensor
        self.std: Tensor

    def check_side(self, side: int) -> None:
        if side < self.patch or side % self.patch:
            raise ConfigError(f"this image encoder reads squares whose side is a multiple of {self.patch}, not {side}.")

    def forward(self, pixels: Tensor) -> Tensor:
        raw = self._raw(pixels)  # (B, N, V - places)
        side = math.isqrt(raw.shape[1])
        position = place_features(side, self.places, raw.device).to(raw.dtype).expand(len(raw), -1, -1)
        return torch.cat([(raw - self.mean) / self.std, position], dim=-1)

    @torch.no_grad()
    def calibrate(self, pixels: Tensor) -> None:
        """Set the statistics that standardise the features from a batch of normalised images."""
        raw = self._raw(pixels)
        self.mean.copy_(raw.mean(dim=(0, 1)))
        self.std.copy_(raw.std(dim=(0, 1)).clamp(min=1e-3))

    def _raw(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        self.check_side(width)
        if height != width:
            raise ValueError(f"{type(self).__name__} reads squares, not {height} x {width} pixels")
        return rearrange(torch.cat(self._maps(pixels), dim=1), "b v y x -> b (y x) v")

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """Return maps of features (B, F, S / patch, S / patch)."""
        raise NotImplementedError


class EfficientNetTower(GridTower):
    """EfficientNet-Lite0 at stride 16, with the details that it loses: finer features, colours and position.

    The features of a patch of 16 x 16 pixels are block 10 (112 numbers), block 4 of its four quarters (160), the mean
    colours of its cells (48 numbers for cells of 4 x 4 pixels, 192 for 2 x 2), all standardised by the training data's
    statistics, and a position embedding (32).
    """

    taps = (4, 10)

    def __init__(self, colour_cell: int = 4) -> None:
        if colour_cell not in (2, 4):
            raise ConfigError(f"colour_cell is {colour_cell}: use 2 or 4.")
        features = 112 + 4 * 40 + 3 * (16 // colour_cell) ** 2
        super().__init__(EfficientNetLite(last_block=self.taps[-1]), patch=16, features=features)
        self.colour_cell = colour_cell

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        fine, coarse = self.network(pixels, self.taps)  # (B, 40, S/8, S/8), (B, 112, S/16, S/16)
        colours = F.avg_pool2d(pixels, self.colour_cell)
        return [coarse, F.pixel_unshuffle(fine, 2), F.pixel_unshuffle(colours, 16 // self.colour_cell)]


class EfficientNetFullTower(GridTower):
    """All layers of EfficientNet-Lite0 before its pooling, at stride 32: features that tell categories apart.

    The features of a patch of 32 x 32 pixels are those of the head (1280 numbers), which the network's own classifier
    averages, the mean colours of its cells of 8 x 8 pixels (48), and a position embedding (32).
    """

    colour_cell = 8

    def __init__(self) -> None:
        super().__init__(EfficientNetLite(head=True), patch=32, features=HEAD_WIDTH + 3 * (32 // self.colour_cell) ** 2)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        fast = pixels.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
        (head,) = self.network(fast, (-1,))  # (B, 1280, S/32, S/32)
        return [head, F.pixel_unshuffle(F.avg_pool2d(pixels, self.colour_cell), 32 // self.colour_cell)]


class TimmTower(nn.Module):
    """A network of timm that returns patch features. A checkpoint holds its weights; timm downloads none."""

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ConfigError("The tower `timm` needs timm: pip install 'blip-diffusion[timm]'.") from error
        self.network = timm.create_model(name, pretrained=False, num_classes=0)
        self.width = int(self.network.num_features)

    def check_side(self, side: int) -> None:
        if side < 1:
            raise ConfigError(f"an image encoder reads images of at least one pixel, not {side}.")

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network.forward_features(pixels)
        return rearrange(features, "b v y x -> b (y x) v") if features.ndim == 4 else features
