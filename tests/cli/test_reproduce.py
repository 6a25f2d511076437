"""`generate --reproduce`: the settings in a PNG give the same image."""

import base64
import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from blip_diffusion.cli.main import main
from blip_diffusion.generation.png_metadata import METADATA, read_request

from .commands import Run, output_files, read_pixels

pytestmark = [
    pytest.mark.usefixtures("empty_working_directory"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]


def test_reproducing_in_place_changes_nothing(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate() == 0
    before = Path("out/on-the-beach-0.png").read_bytes()
    capsys.readouterr()
    assert main(["generate", "--reproduce", "out/on-the-beach-0.png"]) == 0
    assert capsys.readouterr().out.split() == output_files() == ["out/on-the-beach-0.png"]
    assert Path("out/on-the-beach-0.png").read_bytes() == before


@pytest.mark.parametrize(
    "more",
    [
        (),
        (
            "--steps",
            2,
            "--guidance-scale",
            1.5,
            "--negative-prompt",
            "a cat",
            "--size",
            48,
            "--resize-mode",
            "pad",
            "--target-category",
            "cat",
        ),
        ("--dtype", "bfloat16", "--seed", 2**40),
        ("--preset", "fast"),
    ],
    ids=["plain", "every flag", "bfloat16", "fast"],
)
def test_image_is_reproduced_from_its_metadata(generate: Run, more: tuple[object, ...]) -> None:
    assert generate("--out", "first", *more) == 0
    (path,) = output_files()
    assert main(["generate", "--reproduce", path, "--out", "again"]) == 0
    assert np.array_equal(read_pixels(path), read_pixels(path.replace("first", "again")))
    assert Path(path).read_bytes() == Path(path.replace("first", "again")).read_bytes()


def test_one_image_of_a_batch_is_reproduced(generate: Run) -> None:
    assert generate("--num-images", 3, "--out", "first", prompts=("on the beach", "at the forest")) == 0
    assert main(["generate", "--reproduce", "first/at-the-forest-1.png", "--out", "again"]) == 0
    assert output_files()[0] == "again/at-the-forest-1.png"
    apart = read_pixels("first/at-the-forest-1.png").astype(int) - read_pixels("again/at-the-forest-1.png")
    assert np.abs(apart).max() <= 1  # sums are in another order in a batch of six


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("plain.png", "plain.png holds no generation settings"),
        ("14200.png", "14200.png holds no generation settings"),
        ("nowhere.png", "There is no image at nowhere.png"),
    ],
)
def test_reproduce_refuses_files_without_settings(
    huge_png: Callable[[int], Path], capsys: pytest.CaptureFixture[str], path: str, sentence: str
) -> None:
    Image.new("RGB", (20, 20)).save("plain.png")
    huge_png(14_200)
    assert main(["generate", "--reproduce", path]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not Path("out").exists()


def with_metadata(path: str, **changes: object) -> str:
    """Write a copy of an image with changed metadata."""
    metadata = PngImagePlugin.PngInfo()
    with Image.open(path) as image:
        metadata.add_text(METADATA, json.dumps(json.loads(image.info[METADATA]) | changes))
        image.save("changed.png", pnginfo=metadata)
    return "changed.png"


def test_reproduce_refuses_settings_that_are_given_twice(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    generate()
    metadata = PngImagePlugin.PngInfo()
    with Image.open(output_files()[0]) as image:
        metadata.add_text(METADATA, image.info[METADATA].replace("{", '{"seed": 7, ', 1))
        image.save("twice.png", pnginfo=metadata)
    assert main(["generate", "--reproduce", "twice.png"]) == 2
    assert "they are not valid JSON: the key 'seed' is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("empty", [None, [], {}, 0, False, ["a"]])
@pytest.mark.parametrize("name", ["reference", "region_mask"])
def test_reproduce_refuses_what_is_no_image(
    generate: Run, capsys: pytest.CaptureFixture[str], name: str, empty: object
) -> None:
    generate()
    assert main(["generate", "--reproduce", with_metadata(output_files()[0], **{name: empty}), "--out", "again"]) == 2
    assert f"{name} must be an image as text, not {empty!r}" in capsys.readouterr().err and not Path("again").exists()


def test_reproduce_refuses_another_reference(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    generate()
    stream = io.BytesIO()
    Image.effect_noise((32, 32), 80).save(stream, "png")
    for other in (base64.b64encode(stream.getvalue()).decode(), ""):
        changed = with_metadata(output_files()[0], reference=other)
        assert main(["generate", "--reproduce", changed, "--out", "again"]) == 2
        assert "the reference is not the one that the image was made from" in capsys.readouterr().err
    assert not Path("again").exists()


def test_reproduce_refuses_impossible_paths(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    generate()
    net = {"kind": "canny", "net": "n" * 5000, "scale": 1.0, "picture": ""}
    subject = {"path": "n" * 5000, "weight": 1.0, "sha256": ""}
    for changes in ({"model": "a" * 5000}, {"controls": [net]}, {"subjects": [subject]}):
        capsys.readouterr()
        assert main(["generate", "--reproduce", with_metadata(output_files()[0], **changes)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_reproduce_warns_about_another_version(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    generate()
    assert main(["generate", "--reproduce", with_metadata(output_files()[0], version="0.0.9"), "--out", "again"]) == 0
    assert "is from blip-diffusion 0.0.9" in capsys.readouterr().err


def test_a_compiled_image_is_reproduced_without_compiling_on_a_cpu(
    generate: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate()
    monkeypatch.setattr("torch.nn.Module.compile", lambda *_: pytest.fail("it compiles"))
    changed = with_metadata(output_files()[0], engine="compiled")
    assert main(["generate", "--reproduce", changed, "--device", "cpu", "--out", "again"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "torch reproduces it, and only rounding differs" in printed.err
    (path,) = Path("again").iterdir()
    assert np.array_equal(read_pixels(path), read_pixels("out/on-the-beach-0.png"))
    assert read_request(path).engine == "torch" and read_request(Path(changed)).engine == "compiled"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["in the snow"], "the prompt"),
        (["--seed", "9", "--num-images", "3"], "--num-images, --seed"),
        (["--target-category", "cat"], "--target-category"),
        (["--subject", "rex.safetensors"], "--subject"),
        (["--dtype", "bfloat16"], "--dtype"),
        (["--preset", "fast"], "--preset"),
    ],
)
def test_reproduce_excludes_other_flags(
    generate: Run, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    assert generate() == 0
    capsys.readouterr()
    assert main(["generate", *more, "--reproduce", "out/on-the-beach-0.png"]) == 2
    assert f"remove {named}, or --reproduce" in capsys.readouterr().err
    assert output_files() == ["out/on-the-beach-0.png"]


WEIGHTED = ("--prompt-weighting", "--guidance-scale", 5)


def test_weights_on_words_are_reproduced(generate: Run) -> None:
    pytest.importorskip("compel")
    assert generate("--negative-prompt", "a (cat)1.5", *WEIGHTED, "--out", "first") == 0
    (path,) = output_files()
    assert main(["generate", "--reproduce", path, "--out", "again"]) == 0
    assert np.array_equal(read_pixels(path), read_pixels(path.replace("first", "again")))
    assert generate("--negative-prompt", "a (cat)3", *WEIGHTED, "--out", "other") == 0
    (other,) = Path("other").iterdir()
    assert not np.array_equal(read_pixels(path), read_pixels(str(other)))


@pytest.mark.skipif(find_spec("compel") is not None, reason="compel is installed")
def test_weights_on_words_need_the_extra(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--prompt-weighting") == 2
    assert "--prompt-weighting needs the package compel" in capsys.readouterr().err
    assert not output_files()
