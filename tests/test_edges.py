import torch
from PIL import Image, ImageDraw

from blip_diffusion import images
from blip_diffusion.annotators import canny
from blip_diffusion.edges import canny_edges


def test_a_batch_has_the_edges_of_its_images(dog: Image.Image) -> None:
    other = Image.new("RGB", dog.size, "white")
    ImageDraw.Draw(other).rectangle((10, 12, 29, 27), fill="black")
    result = canny_edges(images.to_tensor([dog, other]))
    assert result.shape == (2, 1, 48, 64) and set(result.unique().tolist()) == {0.0, 1.0}
    for edges, image in zip(result, (dog, other), strict=True):
        assert torch.equal(edges.expand(3, -1, -1), images.to_tensor([canny(image)])[0])


def test_float_values_are_rounded_to_bytes(dog: Image.Image) -> None:
    pixels = images.to_tensor([dog])
    assert torch.equal(canny_edges(pixels), canny_edges((pixels + 0.4 / 255).clamp(max=1)))
