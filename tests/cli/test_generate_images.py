"""`generate`: images, file names, grids, flags, batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion.cli.main import main
from blip_diffusion.devices import has_bfloat16
from blip_diffusion.generation.png_metadata import read_request
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .commands import Run, output_files, read_pixels

pytestmark = [
    pytest.mark.usefixtures("empty_working_directory"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]


def test_generate_writes_images_and_prints_their_paths(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code = generate("--num-images", 2, "--seed", 7, "--out", "drawn", prompts=("on the beach", "At the forest!"))
    printed = capsys.readouterr()
    assert code == 0 and printed.err == ""
    paths = ["on-the-beach-7.png", "on-the-beach-8.png", "at-the-forest-7.png", "at-the-forest-8.png"]
    assert printed.out.split() == [f"drawn/{path}" for path in paths]
    assert output_files() == sorted(printed.out.split())
    images = [read_pixels(path) for path in printed.out.split()]
    assert all(image.shape == (32, 32, 3) for image in images)
    assert len({image.tobytes() for image in images}) == 4


def test_same_command_gives_the_same_bytes(generate: Run) -> None:
    for out in ("first", "second"):
        assert generate("--out", out, "--seed", 3) == 0
    assert Path("first/on-the-beach-3.png").read_bytes() == Path("second/on-the-beach-3.png").read_bytes()


def test_prompts_with_equal_file_names_do_not_overwrite_each_other(
    generate: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--out", "out", prompts=("on the beach", "on the beach!")) == 0
    assert capsys.readouterr().out.split() == output_files() == ["out/on-the-beach-0.png", "out/on-the-beach-0_2.png"]


def test_different_images_are_not_overwritten(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt, more in (("雪の中", ()), ("на пляже", ()), ("雪の中", ("--steps", 2)), ("雪の中", ())):
        assert generate(*more, prompts=(prompt,)) == 0
    paths = ["out/雪の中-0.png", "out/на-пляже-0.png", "out/雪の中-0_2.png", "out/雪の中-0.png"]
    assert capsys.readouterr().out.split() == paths
    assert output_files() == sorted(set(paths))
    assert [read_request(Path(path)).prompts[0] for path in paths[:3]] == ["雪の中", "на пляже", "雪の中"]
    Path("out/on-the-beach-0.png").write_text("a letter")
    assert generate() == 0
    assert capsys.readouterr().out.split() == ["out/on-the-beach-0_2.png"]
    assert Path("out/on-the-beach-0.png").read_text() == "a letter"


def test_size_may_have_width_and_height(generate: Run) -> None:
    assert generate("--size", "64x32") == 0
    assert read_pixels("out/on-the-beach-0.png").shape == (32, 64, 3)


def test_dtype_overrides_the_precision_of_a_preset(generate: Run) -> None:
    fastest = "bfloat16" if has_bfloat16() else "float32"
    for number, (more, dtype) in enumerate(
        [((), "float32"), (("--preset", "exact"), fastest), (("--preset", "exact", "--dtype", "float32"), "float32")]
    ):
        assert generate("--out", str(number), *more) == 0
        made = read_request(Path(f"{number}/on-the-beach-0.png"))
        assert (made.dtype, made.preset) == (dtype, "exact" if more else "")
    whole, plain = read_pixels("2/on-the-beach-0.png").astype(int), read_pixels("0/on-the-beach-0.png")
    assert np.abs(whole - plain).max() <= 1


def test_every_flag_changes_the_image(generate: Run) -> None:
    changes: list[tuple[object, ...]] = [
        (),
        ("--seed", 1),
        ("--steps", 2),
        ("--guidance-scale", 6),
        ("--negative-prompt", "a dog"),
        ("--resize-mode", "squash"),
        ("--target-category", "cat"),
        ("--category", "cat"),
        ("--size", 16),
        ("--preset", "fast"),
    ]
    for number, change in enumerate(changes):
        assert generate("--out", str(number), *change) == 0
    assert len({read_pixels(path).tobytes() for path in output_files()}) == len(changes)


def test_grid_contains_all_images(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ("on the beach", "at the forest")
    assert generate("--num-images", 3, "--grid", "page.png", prompts=prompts) == 0
    assert capsys.readouterr().out.split()[-1] == "page.png"
    page = read_pixels("page.png")
    assert page.shape == (3 * 34 - 2, 3 * 34 - 2, 3)
    assert np.array_equal(page[34:66, 34:66], read_pixels("out/on-the-beach-1.png"))
    assert np.array_equal(page[68:, 68:], read_pixels("out/at-the-forest-2.png"))
    assert main(["generate", "--reproduce", "page.png", "--out", "again", "--grid", "twin.png"]) == 0
    assert np.array_equal(page, read_pixels("twin.png")) and len(list(Path("again").iterdir())) == 6


def test_grid_of_another_command_is_not_overwritten(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for seed in (1, 2, 1):
        assert generate("--seed", seed, "--grid", "page.png") == 0
        pages.append(capsys.readouterr().out.split()[-1])
    assert pages == ["page.png", "page_2.png", "page.png"]
    assert np.array_equal(read_pixels("page.png")[:, 34:], read_pixels("out/on-the-beach-1.png"))
    assert np.array_equal(read_pixels("page_2.png")[:, 34:], read_pixels("out/on-the-beach-2.png"))


@pytest.mark.parametrize("kind", ["rotated", "RGBA", "CMYK", "I;16", "P"])
def test_references_of_every_image_mode(generate: Run, dog: Image.Image, kind: str) -> None:
    """References of every mode give the image of the same RGB reference."""
    path = Path("reference.tif" if kind == "CMYK" else "reference.png")
    same = dog
    if kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        dog.rotate(90, expand=True).save(path, exif=exif)
    elif kind == "I;16":
        same = dog.convert("L").convert("RGB")
        Image.fromarray(np.asarray(dog.convert("L")).astype(np.uint16) * 257).save(path)
    elif kind == "P":
        dog.quantize(16).save(path)
        same = dog.quantize(16).convert("RGB")
    else:
        dog.convert(kind).save(path)
    same.save("same.png")
    assert generate("--reference", path, "--out", "odd") == 0
    assert generate("--reference", "same.png", "--out", "plain") == 0
    assert np.array_equal(read_pixels("odd/on-the-beach-0.png"), read_pixels("plain/on-the-beach-0.png"))


def test_long_prompt_is_truncated_with_a_warning(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(prompts=("on the beach " * 20 + "red",)) == 0
    error = capsys.readouterr().err
    assert error.startswith("blip-diffusion: The prompt is too long for the text encoder; dropped from its end: '")
    assert error.endswith("red'\n") and error.count("\n") == 1
    assert len(output_files()) == 1


def test_images_are_generated_in_batches(
    generate: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command gives the same bytes, the grid shows all images, and an interrupt loses one batch."""
    long = "on the beach " * 20
    assert generate("--num-images", 11, "--steps", 1, "--grid", "page.png", "--out", "all", prompts=(long,)) == 0
    printed = capsys.readouterr()
    assert printed.err.count("dropped from its end") == 1
    assert len(printed.out.split()) == len(output_files()) == 12
    assert read_pixels("page.png").shape == (11 * 34 - 2, 2 * 34 - 2, 3)
    rounds: list[int] = []
    draws = BlipDiffusionPipeline.__call__

    def interrupted(self: BlipDiffusionPipeline, prompts: list[str], **how: object) -> object:
        rounds.append(len(prompts))
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return draws(self, prompts, **how)

    monkeypatch.setattr(BlipDiffusionPipeline, "__call__", interrupted)
    assert generate("--num-images", 11, "--steps", 1, "--out", "some", prompts=(long,)) == 130
    some = sorted(Path("some").iterdir())
    assert rounds == [8, 3] and len(some) == 8
    assert all(path.read_bytes() == Path("all", path.name).read_bytes() for path in some)


def test_interrupt_prints_no_traceback(
    generate: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "randn", interrupted)
    assert generate() == 130
    assert capsys.readouterr().err == "blip-diffusion: interrupted\n" and output_files() == []
