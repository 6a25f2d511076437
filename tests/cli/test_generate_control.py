"""`generate --control`: ControlNets and invalid values."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from PIL import Image

from blip_diffusion.cli.main import main
from blip_diffusion.generation.png_metadata import decode
from blip_diffusion.generation.request import control_map, read_control

from .commands import Run, output_files, read_pixels

pytestmark = [
    pytest.mark.usefixtures("empty_working_directory"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]


@pytest.fixture
def controlnet(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet of the tiny model with non-zero weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(tiny_folder / "unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    for parameter in net.controlnet_cond_embedding.conv_out.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.3)
    folder = tmp_path_factory.mktemp("nets")
    net.save_pretrained(folder)
    return folder


def test_control_image_changes_the_result_and_is_reproduced(generate: Run, controlnet: Path, reference: Path) -> None:
    net = ("--controlnet", f"canny={controlnet}")
    assert generate("--out", "plain") == 0
    assert generate("--out", "held", "--control", f"canny={reference}:0.8", *net) == 0
    assert generate("--out", "loose", "--control", f"canny={reference}:0.1", *net) == 0
    held = Path("held/on-the-beach-0.png")
    assert not np.array_equal(read_pixels(held), read_pixels("plain/on-the-beach-0.png"))
    assert not np.array_equal(read_pixels(held), read_pixels("loose/on-the-beach-0.png"))
    control_map(read_control("canny", reference, side=32)).save("edges.png")  # at the generated image's size
    assert generate("--out", "map", "--control", "map=edges.png:0.8", "--controlnet", f"map={controlnet}") == 0
    assert np.array_equal(read_pixels(held), read_pixels("map/on-the-beach-0.png"))
    reference.rename(reference.with_name("gone.png"))
    assert main(["generate", "--reproduce", str(held), "--out", "again"]) == 0
    assert held.read_bytes() == Path("again/on-the-beach-0.png").read_bytes()


def test_a_control_ends_after_a_share_of_the_steps(generate: Run, controlnet: Path, reference: Path) -> None:
    """One number is for all controls; the PNG keeps the end of each."""
    flags = ["--steps", "4", "--control", f"canny={reference}", "--controlnet", f"canny={controlnet}"]
    reference_map = ["--control", f"map={reference}", "--controlnet", f"map={controlnet}"]
    for name, ends in (("all", []), ("half", [0.5]), ("each", [0.5, 1]), ("both", [0.5, 0.5])):
        more = [f"--control-guidance-end={end}" for end in ends]
        assert generate(*flags, *(reference_map if len(ends) > 1 else []), *more, "--out", name) == 0
    assert generate(*flags, *reference_map, "--control-guidance-end=0.5", "--out", "one") == 0
    files = {name: Path(name, "on-the-beach-0.png") for name in ("all", "half", "each", "both", "one")}
    assert files["both"].read_bytes() == files["one"].read_bytes()
    assert [one.end for one in decode(files["each"])[0].controls] == [0.5, 1.0]
    assert not np.array_equal(read_pixels(files["all"]), read_pixels(files["half"]))
    assert not np.array_equal(read_pixels(files["each"]), read_pixels(files["both"]))
    assert main(["generate", "--reproduce", str(files["half"]), "--out", "again"]) == 0
    assert files["half"].read_bytes() == Path("again/on-the-beach-0.png").read_bytes()


@pytest.mark.parametrize(("kind", "channels"), [("depth", 1), ("normal", 3)])
def test_ready_made_maps_are_read_by_the_models_adapter(
    generate: Run, tiny_folder: Path, tmp_path: Path, kind: str, channels: int
) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    widths = list(UNet2DConditionModel.from_pretrained(tiny_folder / "unet").config.block_out_channels)
    torch.manual_seed(0)
    adapter = T2IAdapter(channels, widths, num_res_blocks=1, downscale_factor=8)
    adapter.save_pretrained(model / "t2i_adapter" / kind)
    background, subject = ((0, 0, 0), (200, 200, 200)) if kind == "depth" else ((128, 128, 255), (230, 128, 204))
    image = Image.new("RGB", (32, 32), background)
    image.save("flat.png")
    image.paste(subject, (8, 8, 24, 24))
    image.save("solid.png")
    for name in ("flat", "solid"):
        assert generate("--model", model, "--control", f"{kind}={name}.png", "--out", name) == 0
    pixels = [read_pixels(f"{name}/on-the-beach-0.png") for name in ("flat", "solid")]
    assert not np.array_equal(*pixels)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--control", "canny"], "write KIND=FILE"),
        (["--control", "canny=nowhere.png"], "no image at nowhere.png"),
        (["--control", "edges={image}"], "no control 'edges'"),
        (["--control", "canny={image}:strong"], "the scale 'strong'"),
        (["--control", "canny={image}:inf"], "scale must be a finite number, not inf"),
        (["--control", "depth={image}"], "pip install 'blip-diffusion[control]'"),
        (["--control", "canny={image}"], "no ControlNet for canny and this model"),
        (["--controlnet", "canny=x"], "add --control canny=FILE"),
        (["--control-guidance-end", "0.7"], "--control-guidance-end has no effect: add --control KIND=FILE."),
        (["--control", "canny={image}", "--control-guidance-end", "0"], "-end is 0.0: use a number above 0, up to 1."),
        (
            ["--control", "canny={image}", "--control-guidance-end", "nan"],
            "-end is nan: use a number above 0",
        ),
        (
            ["--control", "canny={image}", "--control-guidance-end", "0.5", "--control-guidance-end", "1"],
            "There are 2 --control-guidance-end for 1 --control: give one, or one each.",
        ),
        (["--control", "canny={image}", "--controlnet", "canny=nowhere"], "There is no model nowhere"),
        (["--control", "canny={image}", "--controlnet", "canny={image}"], "is not a file of weights"),
    ],
)
def test_invalid_control_flags_are_refused(
    generate: Run, reference: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert generate(*(flag.replace("{image}", str(reference)) for flag in flags)) == 2
    assert message in capsys.readouterr().err
    assert output_files() == []
