import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from huggingface_hub import hf_hub_download
from PIL import Image, ImageDraw

from blip_diffusion.annotators import annotate, canny
from blip_diffusion.errors import InputError

EXAMPLES = Path(__file__).parents[1] / "examples"
OPENCV = {("apple", 30, 70): 1917, ("apple", 100, 200): 843, ("dog", 30, 70): 3338, ("armchair", 100, 200): 943}
"""How many pixels are edges by OpenCV 4.12, in which ours agree with it one by one."""


def edges(image: Image.Image, *thresholds: float) -> np.ndarray:
    return np.asarray(canny(image, *thresholds))[..., 0] > 0


@pytest.mark.parametrize(("name", "low", "high"), OPENCV)
def test_canny_equals_opencv(name: str, low: int, high: int) -> None:
    image = Image.open(EXAMPLES / f"{name}.png").convert("RGB")
    result = edges(image, low, high)
    assert result.sum() == OPENCV[name, low, high]
    cv2 = pytest.importorskip("cv2")
    assert np.array_equal(result, cv2.Canny(np.asarray(image), low, high) > 0)


def test_masks_are_the_transparency_or_black_and_white() -> None:
    mask = Image.new("L", (20, 20))
    mask.paste(255, (5, 5, 15, 18))
    cutout = Image.new("RGB", (20, 20), "red")
    cutout.putalpha(mask)
    for image in (mask, mask.convert("RGB"), mask.convert("1"), cutout):
        found = annotate(image, "mask")
        assert found.mode == "RGB" and np.array_equal(np.asarray(found)[..., 0], np.asarray(mask))
    with pytest.raises(InputError, match="black and white, white at the subject"):
        annotate(Image.open(EXAMPLES / "dog.png").convert("RGB").point(lambda value: value // 2), "mask")
    with pytest.raises(InputError, match="no white pixel"):
        annotate(Image.new("L", (20, 20)), "mask")


def test_a_square_has_four_thin_sides() -> None:
    image = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(image).rectangle((10, 12, 29, 27), fill="black")
    result = edges(image)
    assert np.flatnonzero(result[20]).tolist() == [9, 29]
    assert np.flatnonzero(result[:, 20]).tolist() == [11, 27]


def test_weak_edges_need_a_strong_neighbour() -> None:
    image = np.full((20, 40), 100, np.uint8)
    image[10:, :20], image[10:, 20:] = 130, 112  # slopes of 4 x 30 and 4 x 12
    assert edges(Image.fromarray(image), 30, 100)[9:11].any(axis=0).all()
    image[:, :20] = 100
    assert not edges(Image.fromarray(image), 60, 100).any()


def test_edges_between_colours_of_equal_brightness() -> None:
    image = Image.new("RGB", (20, 20), (255, 0, 0))
    image.paste((0, 130, 0), (10, 0, 20, 20))  # as bright
    assert edges(image).any(axis=0).sum() == 1


def test_control_map_is_unchanged(dog: Image.Image) -> None:
    assert annotate(dog, "map").tobytes() == dog.tobytes()
    assert annotate(dog, "canny").size == dog.size


def test_depth_and_normal_maps_are_used_as_they_are(dog: Image.Image) -> None:
    depth = Image.linear_gradient("L").resize((40, 30))
    assert annotate(depth, "depth").tobytes() == depth.convert("RGB").tobytes()
    slopes = np.mgrid[-0.6:0.6:40j, -0.6:0.6:40j]
    normals = np.stack([*slopes, np.sqrt(1 - (slopes**2).sum(0))], axis=2)
    encoded = Image.fromarray(((normals + 1) * 127.5).round().astype(np.uint8))
    assert annotate(encoded, "normal").tobytes() == encoded.tobytes()
    for image, kind in ((encoded, "depth"), (depth, "normal"), (dog, "depth"), (dog, "normal")):
        with pytest.raises(InputError, match=f"The control image is no {kind} map: use "):
            annotate(image, kind, networks=False)
        with pytest.raises(InputError, match=f"{kind} needs controlnet_aux.* or give a ready-made map[.]$"):
            annotate(image, kind)


def test_unknown_kinds_are_refused(dog: Image.Image) -> None:
    with pytest.raises(InputError, match="no control 'edges': use map, canny, mask, depth"):
        annotate(dog, "edges")
    with pytest.raises(InputError, match=r"depth needs controlnet_aux: pip install"):
        annotate(dog, "depth")


def test_unavailable_weights_raise_an_error(dog: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library may not be installed here; its detectors begin with this download, which fails without a network."""

    class MidasDetector:
        @classmethod
        def from_pretrained(cls, name: str) -> None:
            hf_hub_download(name, "dpt_hybrid-midas-501f0c75.pt")

    library = ModuleType("controlnet_aux")
    vars(library)["MidasDetector"] = MidasDetector
    monkeypatch.setitem(sys.modules, "controlnet_aux", library)
    with pytest.raises(
        InputError, match=r"can't be loaded from lllyasviel/Annotators .* give a ready-made map"
    ) as caught:
        annotate(dog, "depth")
    assert "\n" not in str(caught.value)
