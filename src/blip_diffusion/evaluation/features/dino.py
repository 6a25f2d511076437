"""DINO ViT-S/16, as DreamBooth's DINO score uses it."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.evaluation.features.extractor import load_pretrained, vit_description
from blip_diffusion.evaluation.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD, resize_and_center_crop
from blip_diffusion.images import normalise, to_tensor

DINO_ID = "facebook/dino-vits16"


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
