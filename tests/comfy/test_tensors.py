"""ComfyUI's images and masks to files and back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion.comfy.tensors import LEVELS, from_pil, reference_files, to_pil
from blip_diffusion.errors import InputError

NOISE = Image.effect_noise((24, 20), 80).convert("RGB")


def test_nodes_that_truncate_write_the_same_eight_bits() -> None:
    assert ((255.0 * LEVELS.numpy()).astype(np.uint8) == np.arange(256)).all()
    assert ((255.0 * LEVELS.numpy()).round() == np.arange(256)).all()
    assert LEVELS.dtype == torch.float32 and LEVELS.max() == 1


def test_images_go_there_and_back() -> None:
    image = from_pil([NOISE, NOISE.rotate(180)])
    assert image.shape == (2, 20, 24, 3)
    assert [one.tobytes() for one in to_pil(image)] == [NOISE.tobytes(), NOISE.rotate(180).tobytes()]


def test_values_out_of_range_are_clamped() -> None:
    image = torch.tensor([-1.0, 2.0, float("nan")]).expand(1, 16, 16, 3)
    assert to_pil(image)[0].getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize("shape", [(20, 24, 3), (1, 3, 20, 24), (0, 20, 24, 3)], ids=str)
def test_other_tensors_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="connect an IMAGE"):
        to_pil(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 20, 24), (2, 10, 12), (20, 24)], ids=str)
def test_a_mask_makes_the_background_transparent(shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape)
    mask[..., : shape[-2] // 2, :] = 1
    for file in reference_files(from_pil([NOISE, NOISE]), mask):
        with Image.open(file) as image:
            assert image.mode == "RGBA" and image.size == NOISE.size
            assert image.getpixel((3, 1))[3] == 0 and image.getpixel((3, 18))[3] == 255  # type: ignore[index]


def test_without_a_mask_files_are_rgb() -> None:
    (file,) = reference_files(from_pil([NOISE]))
    assert isinstance(file, io.BytesIO)
    assert Image.open(file).mode == "RGB"


def test_masks_must_be_one_or_one_each() -> None:
    with pytest.raises(InputError, match="3 masks for 2 images"):
        reference_files(from_pil([NOISE, NOISE]), torch.zeros(3, 20, 24))
