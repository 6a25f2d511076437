"""`generate`: invalid input gives one sentence, exit code 2, and no files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from .commands import Run, output_files

pytestmark = [
    pytest.mark.usefixtures("empty_working_directory"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]


def make_bad(name: str, huge_png: Callable[[int], Path]) -> list[str]:
    """Return flags with an unusable value; create the files that they name."""
    match name:
        case "missing file":
            return ["--reference", "nowhere.png"]
        case "text file":
            Path("text.png").write_text("no image")
            return ["--reference", "text.png"]
        case "one pixel":
            Image.new("RGB", (1, 1)).save("pixel.png")
            return ["--reference", "pixel.png"]
        case "200 megapixels":
            return ["--reference", str(huge_png(14_200))]
        case "folder":
            return ["--reference", "."]
        case "out is a file":
            Path("taken").touch()
            return ["--out", "taken"]
        case "out below a file":
            Path("taken").touch()
            return ["--out", "taken/below"]
        case "page below a file":
            Path("taken").touch()
            return ["--grid", "taken/page.png"]
        case "page is a folder":
            Path("page.png").mkdir()
            return ["--grid", "page.png"]
        case "page is someone's":
            Image.new("RGB", (20, 20)).save("photo.png")
            return ["--grid", "photo.png"]
        case "broken weights":
            folder = Path("broken/unet")
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{")
            return ["--model", "broken"]
    return name.split()


BAD = {
    "missing file": "There is no image at nowhere.png",
    "text file": "text.png is not an image that can be read",
    "one pixel": "pixel.png has 1 x 1 pixels",
    "200 megapixels": "at most 64 megapixels",
    "folder": "There is no image at .",
    "out is a file": "Nothing can be written to taken: choose another --out",
    "out below a file": "Nothing can be written to taken/below",
    "--out /proc/x/y": "Nothing can be written to /proc/x/y",
    "page below a file": "Nothing can be written to taken: choose another --grid",
    "page is a folder": "--grid page.png must be a file that ends in .png",
    "page is someone's": "--grid photo.png exists and was not written by blip-diffusion",
    "--grid page": "--grid page must be a file that ends in .png",
    "broken weights": "broken/unet/config.json can't be read",
    "--size 30": "The size 30 can't be used: give a multiple of 16",
    "--size 0": "The size 0 can't be used",
    "--model nowhere": "There is no model nowhere: use mini, a folder, or a hub id",
    "--model nobody/nothing": "There is no folder nobody/nothing, and the hub can't provide it",
    "--model .": "The model in . is incomplete",
    "--num-images 0": "--num-images is 0: use a number from 1 to 1000",
    "--num-images -1": "--num-images is -1",
    "--steps 0": "--steps is 0",
    "--seed -1": "--seed is -1",
    "--guidance-scale -2": "--guidance-scale is -2.0",
    "--device nonsense": "There is no device nonsense here",
}


@pytest.mark.parametrize(("name", "sentence"), BAD.items(), ids=list(BAD))
def test_invalid_input_is_reported_in_one_sentence(
    generate: Run, capsys: pytest.CaptureFixture[str], huge_png: Callable[[int], Path], name: str, sentence: str
) -> None:
    arguments = make_bad(name, huge_png)
    before = output_files()
    code = generate(*arguments)
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and output_files() == before
    assert printed.err.startswith("blip-diffusion: ") and sentence in printed.err
    assert printed.err.count("\n") == 1 and printed.err.endswith(".\n")


@pytest.mark.parametrize("prompts", [(), ("",), ("on the beach", "  ")], ids=["none", "empty", "one of two"])
def test_generate_rejects_an_empty_prompt(
    generate: Run, capsys: pytest.CaptureFixture[str], prompts: tuple[str, ...]
) -> None:
    assert generate(prompts=prompts) == 2
    assert "rompt" in capsys.readouterr().err and output_files() == []


def test_generate_rejects_an_empty_category(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--category", " ") == 2
    assert "The category is empty" in capsys.readouterr().err and output_files() == []
