"""CLIP: one space for images and text, for CLIP-I and CLIP-T."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import CheckpointError
from blip_diffusion.evaluation.features.extractor import load_pretrained, vit_description
from blip_diffusion.evaluation.features.preprocessing import resize_and_center_crop
from blip_diffusion.images import normalise, to_tensor

LETTERS = 256
"""Vocabulary of a tokenizer without merges: one token per byte."""
CLIP_IDS = {"b32": "openai/clip-vit-base-patch32", "l14": "openai/clip-vit-large-patch14"}


class Clip:
    """CLIP (Radford et al. 2021): one space for images and text."""

    family = "CLIP"

    def __init__(self, source: str = CLIP_IDS["b32"]) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.network = load_pretrained(CLIPModel, source)
        self.tokenizer = load_pretrained(CLIPTokenizer, source)
        words, known = len(self.tokenizer), int(self.network.config.text_config.vocab_size)
        if not LETTERS < words <= known:  # transformers makes an empty one where there are no files
            raise CheckpointError(
                f"The tokenizer in {source} has {words} words, and its CLIP knows {known}: fetch it again."
            )
        self.side = int(self.network.config.vision_config.image_size)
        self.backbone = f"CLIP, {vit_description(self.network.vision_model, source)}, projected"
        self.preprocessing = f"short side bicubic to {self.side}, centre crop {self.side}, CLIP statistics"

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        from blip_diffusion.model import CLIP_MEAN, CLIP_STD

        pixels = to_tensor([resize_and_center_crop(image, self.side, self.side) for image in images])
        output = self.network.vision_model(pixel_values=normalise(pixels, CLIP_MEAN, CLIP_STD))
        return self.network.visual_projection(output.pooler_output)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts in the same space (B, F)."""
        limit = self.network.config.text_config.max_position_embeddings
        words = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return self.network.text_projection(self.network.text_model(**words).pooler_output)
