"""References are cropped to their subject: by transparency, a plain border, or the subject finder."""

import warnings

import pytest
import torch
from PIL import Image, ImageDraw

from blip_diffusion.checkpoint.model_folder import Parts
from blip_diffusion.framing import FILL, Box
from blip_diffusion.images import to_tensor
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.references import find_subject, square_reference
from blip_diffusion.training.initialization import InitConfig, init_model


@pytest.fixture(scope="module")
def model() -> BlipDiffusion:
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    built = init_model(Parts(), InitConfig(preset="tiny-placed"), ["a dog on the beach"] * 9, pixels)
    return built.eval()


def cut_out(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGBA", size)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(200, 30, 30, 255))
    return image


def test_transparency_locates_the_subject(model: BlipDiffusion) -> None:
    box = find_subject(model, cut_out((200, 100), (20, 10, 60, 90)))
    assert box == pytest.approx((0.1, 0.1, 0.3, 0.9), abs=0.01)


def test_a_subject_in_a_corner_fills_the_square(model: BlipDiffusion) -> None:
    square, aspect = square_reference(model, cut_out((200, 100), (150, 60, 190, 80)))
    assert square.size == (32, 32) and aspect == pytest.approx(2.0, rel=0.1)
    red = to_tensor([square])[0, 1] < 0.5
    assert float(red.any(0).sum()) / 32 == pytest.approx(FILL, abs=0.07)


def test_other_modes_keep_the_image(model: BlipDiffusion) -> None:
    image = Image.new("RGB", (64, 64), "navy")
    assert square_reference(model, image, "squash").image.getpixel((3, 3)) == (0, 0, 128)


def test_finder_is_used_for_opaque_images_without_plain_border(model: BlipDiffusion) -> None:
    noise = (torch.rand(60, 90, 3, generator=torch.Generator().manual_seed(1)) * 255).byte().numpy()
    image = Image.fromarray(noise)
    assert model.subject_finder is not None
    with torch.no_grad():
        model.subject_finder.mask.weight.zero_()
        model.subject_finder.mask.bias.fill_(9.0)
    assert find_subject(model, image) == Box(0.0, 0.0, 1.0, 1.0)
    with torch.no_grad():
        model.subject_finder.mask.bias.fill_(-9.0)
    assert find_subject(model, image) is None
    with pytest.warns(UserWarning, match="No subject was found"):
        assert square_reference(model, image).image.size == (32, 32)


def test_crop_that_cuts_the_subject_gives_a_warning(model: BlipDiffusion) -> None:
    wide = cut_out((300, 100), (10, 10, 90, 90))
    with pytest.warns(UserWarning, match="Much of the subject lies outside the middle square"):
        square_reference(model, wide, "crop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        square_reference(model, cut_out((300, 100), (110, 10, 190, 90)), "crop")
        square_reference(model, wide, "pad")
