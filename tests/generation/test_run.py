import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import ControlNetModel
from PIL import Image, PngImagePlugin

from blip_diffusion import __version__
from blip_diffusion.errors import InputError
from blip_diffusion.generation.control_kinds import CONTROLNETS
from blip_diffusion.generation.png_metadata import METADATA, read_request
from blip_diffusion.generation.request import ControlInput, GenerationRequest, read_reference
from blip_diffusion.generation.run import run
from blip_diffusion.images import png_bytes
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

REQUEST = {"prompts": ("on the beach",), "reference": b"", "category": "dog", "target_category": "dog"}
PNG = png_bytes(Image.effect_noise((20, 20), 80).convert("RGB"))
TABLE = {
    "prompt": "on the beach",
    "reference": base64.b64encode(PNG).decode(),
    "category": "dog",
    "target_category": "dog",
    "version": __version__,
}


def carrying(table: dict[str, Any], path: Path) -> Path:
    """An image with this metadata."""
    information = PngImagePlugin.PngInfo()
    information.add_text(METADATA, json.dumps(table))
    Image.new("RGB", (20, 20)).save(path, pnginfo=information)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ()},
        {"prompts": ("a", "")},
        {"category": ""},
        {"target_category": " "},
        {"num_images": 0},
        {"num_images": 1001},
        {"steps": 0},
        {"steps": 1001},
        {"seed": -1},
        {"seed": 2**63},
        {"guidance_scale": -1.0},
        {"guidance_scale": 101.0},
        {"guidance_scale": float("nan")},
    ],
    ids=str,
)
def test_requests_are_validated(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        GenerationRequest(**REQUEST | change)


def test_stored_reference_is_upright_and_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "large.jpg", exif=exif)
    with Image.open(io.BytesIO(read_reference(tmp_path / "large.jpg"))) as kept:
        assert kept.size == (512, 1024) and kept.mode == "RGB" and kept.format == "PNG"


def test_metadata_contain_the_whole_request(tiny_folder: Path, tmp_path: Path, dog: Image.Image) -> None:
    dog.save(tmp_path / "dog.png")
    request = GenerationRequest(
        prompts=("on the beach", "at the forest"),
        reference=read_reference(tmp_path / "dog.png"),
        category="dog",
        target_category="cat",
        model=str(tiny_folder),
        num_images=2,
        seed=5,
        steps=2,
        negative_prompt="blurry",
    )
    paths = run(request, tmp_path / "out", device="cpu")
    one = read_request(paths[3])
    assert one == GenerationRequest(**vars(request) | {"prompts": ("at the forest",), "num_images": 1, "seed": 6})
    with Image.open(paths[0]) as file:
        table = json.loads(file.info[METADATA])
    assert table["prompt"] == "on the beach" and table["version"] and len(table["reference_sha256"]) == 64


@pytest.mark.parametrize(
    "table", ["", "[]", "{}", '{"prompt": 3, "reference": "*"}', '{"prompt": "a", "reference": ""}']
)
def test_foreign_metadata_are_refused(tmp_path: Path, table: str) -> None:
    information = PngImagePlugin.PngInfo()
    information.add_text(METADATA, table)
    Image.new("RGB", (20, 20)).save(tmp_path / "other.png", pnginfo=information)
    with pytest.raises(InputError, match="holds no generation settings"):
        read_request(tmp_path / "other.png")


def test_metadata_of_a_later_version(tmp_path: Path) -> None:
    """Unknown fields are ignored."""
    carrying({**TABLE, "later": 1}, tmp_path / "later.png")
    assert read_request(tmp_path / "later.png") == GenerationRequest(**REQUEST | {"reference": PNG})


CONTROL = {"kind": "canny", "image": TABLE["reference"], "scale": 1.0, "controlnet": ""}
SUBJECT = {"path": "rex.safetensors", "sha256": "0", "weight": 1.0, "category": "dog"}


def test_valid_metadata_values_are_accepted(tmp_path: Path) -> None:
    table = {
        **TABLE,
        "dtype": "bfloat16",
        "steps": 2,
        "guidance_scale": 3,
        "controls": [CONTROL],
        "subjects": [SUBJECT],
    }
    request = read_request(carrying(table, tmp_path / "good.png"))
    assert (request.dtype, request.steps, request.guidance_scale) == ("bfloat16", 2, 3.0)
    assert request.controls[0].end == 1  # an older file
    assert request.controls[0].image == PNG and request.subjects[0].path == "rex.safetensors"


@pytest.mark.parametrize(
    "change",
    [
        {"reference": base64.b64encode(b"junk").decode()},
        {"reference": 3},
        {"dtype": "load"},
        {"seed": 1.5},
        {"steps": 1.5},
        {"steps": True},
        {"width": "32"},
        {"model": 3},
        {"prompt": ["a"]},
        {"category": None},
        {"preset": []},
        {"engine": "steam"},
        {"resize_mode": "stretch"},
        {"controls": 3},
        {"controls": [{**CONTROL, "scale": "1"}]},
        {"controls": [{**CONTROL, "end": "1"}]},
        {"controls": [{**CONTROL, "end": 0}]},
        {"controls": [{**CONTROL, "end": 1.5}]},
        {"controls": [{**CONTROL, "image": base64.b64encode(b"junk").decode()}]},
        {"controls": [{**CONTROL, "controlnet": 3}]},
        {"controls": [{**CONTROL, "scale": float("nan")}]},
        {"subjects": [{**SUBJECT, "path": 3}]},
        {"subjects": [{**SUBJECT, "weight": float("inf")}]},
    ],
    ids=str,
)
def test_invalid_metadata_values_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="holds no generation settings"):
        read_request(carrying({**TABLE, **change}, tmp_path / "bad.png"))


def test_animated_images_use_one_frame(tmp_path: Path) -> None:
    assert read_request(carrying({**TABLE, "num_images": 1000}, tmp_path / "many.png")).num_images == 1


def test_metadata_never_cause_a_download(tmp_path: Path) -> None:
    """What an image names must be here, unless whoever makes it again names it too."""
    model = carrying({**TABLE, "model": "someone/model"}, tmp_path / "model.png")
    with pytest.raises(InputError, match="made by 'someone/model', which isn't here: add --model 'someone/model'"):
        read_request(model)
    assert read_request(model, model="someone/model").model == "someone/model"
    net = carrying({**TABLE, "controls": [{**CONTROL, "controlnet": "someone/net"}]}, tmp_path / "net.png")
    with pytest.raises(InputError, match="ControlNet 'someone/net', which isn't here: add --controlnet canny='someone"):
        read_request(net, model="mini")
    assert read_request(net, controlnets={"canny": "mine"}).controls[0].controlnet == "mine"
    with pytest.raises(InputError, match="--controlnet depth has no effect"):
        read_request(net, controlnets={"canny": "mine", "depth": "mine"})
    known = {**TABLE, "controls": [{**CONTROL, "controlnet": CONTROLNETS["canny"]}]}
    with pytest.raises(InputError, match="which isn't here: add --controlnet canny='lllyasviel"):
        read_request(carrying(known, tmp_path / "known.png"))
    here = {**TABLE, "model": str(tmp_path), "controls": [{**CONTROL, "controlnet": str(tmp_path)}]}
    assert read_request(carrying(here, tmp_path / "here.png")).controls[0].controlnet == str(tmp_path)


@pytest.mark.parametrize("where", ["reference", "control"])
def test_decompression_bomb_in_metadata_is_refused(tmp_path: Path, huge_png: Callable[[int], Path], where: str) -> None:
    bomb = base64.b64encode(huge_png(9_000).read_bytes()).decode()  # Pillow alone would let it pass
    change = {"reference": bomb} if where == "reference" else {"controls": [{**CONTROL, "image": bomb}]}
    with pytest.raises(InputError, match="holds no generation settings") as caught:
        read_request(carrying({**TABLE, **change}, tmp_path / "bad.png"))
    assert "megapixels" in str(caught.value.__cause__)


def test_bundled_controlnet_is_used_for_edges_only(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    """Unless it is named: a map of depths isn't what it learned to read."""
    fresh_pipe.controlnet = ControlNetModel.from_unet(fresh_pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    fresh_pipe.save_pretrained(tmp_path / "model")
    reference = png_bytes(Image.linear_gradient("L").convert("RGB"))

    def annotated(kind: str, net: str = "") -> list[Path]:
        controls = (ControlInput(kind, PNG, controlnet=net),)
        request = GenerationRequest(
            **REQUEST | {"reference": reference, "model": str(tmp_path / "model"), "steps": 1, "controls": controls}
        )
        return run(request, tmp_path / "out", device="cpu")

    assert annotated("canny") and annotated("map") and annotated("depth", str(tmp_path / "model"))
    with pytest.raises(InputError, match="no ControlNet for depth and this model: use map, canny, or another model"):
        annotated("depth")


def test_existing_images_are_kept_and_others_generated(
    tiny_folder: Path, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {**REQUEST, "reference": png_bytes(dog), "model": str(tiny_folder), "steps": 1}
    request = GenerationRequest(**table | {"prompts": ("on the beach", "on grass"), "num_images": 5})
    first = run(request, tmp_path, device="cpu")
    content = {path: path.read_bytes() for path in first}
    first[9].unlink()
    Image.new("RGB", (8, 8)).save(first[8])  # of no request
    times = {path: path.stat().st_mtime_ns for path in first[:8]}
    again = run(request, tmp_path, device="cpu", skip_existing=True, grid=tmp_path / "grid.png")
    assert again[:8] == first[:8] and {path: path.stat().st_mtime_ns for path in again[:8]} == times
    assert again[8] == first[8].with_stem(f"{first[8].stem}_2") and again[9] == first[9]
    assert [path.read_bytes() for path in again[8:10]] == [content[path] for path in first[8:]]
    monkeypatch.setattr("blip_diffusion.generation.run.load_pipeline", None)
    assert run(request, tmp_path, device="cpu", skip_existing=True, grid=tmp_path / "grid.png") == again
