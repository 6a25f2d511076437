"""DINO: the class token of ViT-S/16 for DreamBooth's DINO score, and the keys of ViT-B/8 for structure."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.evaluation.features.extractor import load_pretrained, vit_description
from blip_diffusion.evaluation.features.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    resize_and_center_crop,
    resize_to,
)
from blip_diffusion.images import normalise, to_tensor

DINO_ID, DINO_B8_ID = "facebook/dino-vits16", "facebook/dino-vitb8"


class Dino:
    """The class token of DINO ViT-S/16 (Caron et al. 2021), as in DreamBooth's DINO score."""

    family = "DINO"

    def __init__(self, source: str = DINO_ID) -> None:
        from transformers import ViTModel

        self.network = load_pretrained(ViTModel, source, add_pooling_layer=False)
        side = int(self.network.config.image_size)
        self.side = side
        self.backbone = f"DINO, {vit_description(self.network, source)}, class token of the last layer"
        # google/dreambooth#3: the published numbers need this, not the processor that comes with the weights
        self.preprocessing = f"short side bicubic to {side * 8 // 7}, centre crop {side}, ImageNet statistics"

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = to_tensor([resize_and_center_crop(image, self.side * 8 // 7, self.side) for image in images])
        output = self.network(pixel_values=normalise(pixels, IMAGENET_MEAN, IMAGENET_STD))
        return output.last_hidden_state[:, 0]


class DinoKeys:
    """The keys of all tokens in the last layer of DINO ViT-B/8, which describe structure (Tumanyan et al. 2022)."""

    def __init__(self, source: str = DINO_B8_ID) -> None:
        from transformers import ViTModel

        self.network = load_pretrained(ViTModel, source, add_pooling_layer=False)
        self.side = int(self.network.config.image_size)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the keys (B, D, 1, T) of T tokens, the class token first, of pixels (B, 3, S, S) in [0, 1]."""
        keys: list[Tensor] = []
        layer = self.network.layers[-1].attention.k_proj
        handle = layer.register_forward_hook(lambda _module, _inputs, output: keys.append(output))
        try:
            self.network(pixel_values=normalise(resize_to(pixels, self.side), IMAGENET_MEAN, IMAGENET_STD))
        finally:
            handle.remove()
        return keys[0].transpose(1, 2)[:, :, None]
