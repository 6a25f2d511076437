"""The command line from outside: what it prints, what it writes, how it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image, PngImagePlugin

from blip_diffusion.annotators import annotate
from blip_diffusion.cli.main import main
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.devices import has_bfloat16
from blip_diffusion.generation.png_metadata import METADATA, read_request
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
Run = Callable[..., int]
WORLD = str(Path(__file__).parents[1] / "fixtures" / "world.zip")
TUNE = ["tune", "photo.png", "--category", "dog", "--name", "rex"]
HEAVY = ("torch", "diffusers", "transformers", "PIL", "numpy")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lie in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory, dog: Image.Image) -> Path:
    path = tmp_path_factory.mktemp("references") / "dog.png"
    dog.save(path)
    return path


@pytest.fixture
def generate(tiny_folder: Path, reference: Path) -> Run:
    """`generate` with the tiny model; a flag that a test gives replaces the usual one."""

    def run(*arguments: object, prompts: tuple[str, ...] = ("on the beach",)) -> int:
        usual = {"--model": tiny_folder, "--reference": reference, "--category": "dog"}
        own = [part for flag, value in usual.items() if flag not in arguments for part in (flag, value)]
        return main([str(argument) for argument in ("generate", *prompts, *own, *arguments)])

    return run


def written() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---------------------------------------------------------------------------------------------------------------- good


def test_images_are_written_and_their_paths_printed(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code = generate("--num-images", 2, "--seed", 7, "--out", "drawn", prompts=("on the beach", "At the forest!"))
    printed = capsys.readouterr()
    assert code == 0 and printed.err == ""
    paths = ["on-the-beach-7.png", "on-the-beach-8.png", "at-the-forest-7.png", "at-the-forest-8.png"]
    assert printed.out.split() == [f"drawn/{path}" for path in paths]
    assert written() == sorted(printed.out.split())
    images = [pixels(path) for path in printed.out.split()]
    assert all(image.shape == (32, 32, 3) for image in images)
    assert len({image.tobytes() for image in images}) == 4


def test_the_same_order_gives_the_same_bytes(generate: Run) -> None:
    for out in ("first", "second"):
        assert generate("--out", out, "--seed", 3) == 0
    assert Path("first/on-the-beach-3.png").read_bytes() == Path("second/on-the-beach-3.png").read_bytes()


def test_prompts_of_one_name_do_not_overwrite_each_other(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--out", "out", prompts=("on the beach", "on the beach!")) == 0
    assert capsys.readouterr().out.split() == written() == ["out/on-the-beach-0.png", "out/on-the-beach-0_2.png"]


def test_images_of_earlier_runs_are_not_overwritten(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt, more in (("雪の中", ()), ("на пляже", ()), ("雪の中", ("--steps", 2)), ("雪の中", ())):
        assert generate(*more, prompts=(prompt,)) == 0
    paths = ["out/雪の中-0.png", "out/на-пляже-0.png", "out/雪の中-0_2.png", "out/雪の中-0.png"]
    assert capsys.readouterr().out.split() == paths
    assert written() == sorted(set(paths))
    assert [read_request(Path(path)).prompts[0] for path in paths[:3]] == ["雪の中", "на пляже", "雪の中"]
    Path("out/on-the-beach-0.png").write_text("a letter")
    assert generate() == 0
    assert capsys.readouterr().out.split() == ["out/on-the-beach-0_2.png"]
    assert Path("out/on-the-beach-0.png").read_text() == "a letter"


def test_making_it_again_in_place_changes_nothing(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate() == 0
    before = Path("out/on-the-beach-0.png").read_bytes()
    capsys.readouterr()
    assert main(["generate", "--reproduce", "out/on-the-beach-0.png"]) == 0
    assert capsys.readouterr().out.split() == written() == ["out/on-the-beach-0.png"]
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
def test_an_image_tells_how_to_make_it_again(generate: Run, more: tuple[object, ...]) -> None:
    assert generate("--out", "first", *more) == 0
    (path,) = written()
    assert main(["generate", "--reproduce", path, "--out", "again"]) == 0
    assert np.array_equal(pixels(path), pixels(path.replace("first", "again")))
    assert Path(path).read_bytes() == Path(path.replace("first", "again")).read_bytes()


def test_one_of_many_can_be_made_again(generate: Run) -> None:
    assert generate("--num-images", 3, "--out", "first", prompts=("on the beach", "at the forest")) == 0
    assert main(["generate", "--reproduce", "first/at-the-forest-1.png", "--out", "again"]) == 0
    assert written()[0] == "again/at-the-forest-1.png"
    apart = pixels("first/at-the-forest-1.png").astype(int) - pixels("again/at-the-forest-1.png")
    assert np.abs(apart).max() <= 1  # sums are in another order in a batch of six


@pytest.fixture
def controlnet(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet of the tiny model that says something."""
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


def test_structure_is_kept_and_made_again(generate: Run, controlnet: Path, reference: Path) -> None:
    net = ("--controlnet", f"canny={controlnet}")
    assert generate("--out", "plain") == 0
    assert generate("--out", "held", "--control", f"canny={reference}:0.8", *net) == 0
    assert generate("--out", "loose", "--control", f"canny={reference}:0.1", *net) == 0
    held = Path("held/on-the-beach-0.png")
    assert not np.array_equal(pixels(held), pixels("plain/on-the-beach-0.png"))
    assert not np.array_equal(pixels(held), pixels("loose/on-the-beach-0.png"))
    annotate(Image.open(reference), "canny").save("edges.png")
    assert generate("--out", "map", "--control", "map=edges.png:0.8", "--controlnet", f"map={controlnet}") == 0
    assert np.array_equal(pixels(held), pixels("map/on-the-beach-0.png"))
    reference.rename(reference.with_name("gone.png"))
    assert main(["generate", "--reproduce", str(held), "--out", "again"]) == 0
    assert held.read_bytes() == Path("again/on-the-beach-0.png").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--control", "canny"], "write KIND=FILE"),
        (["--control", "canny=nowhere.png"], "no image at nowhere.png"),
        (["--control", "edges={image}"], "no control 'edges'"),
        (["--control", "canny={image}:strong"], "the scale 'strong'"),
        (["--control", "canny={image}:inf"], "The scale of --control canny is inf"),
        (["--control", "depth={image}"], "pip install 'blip-diffusion[control]'"),
        (["--control", "canny={image}"], "no ControlNet for canny and this model"),
        (["--controlnet", "canny=x"], "add --control canny=FILE"),
        (["--control", "canny={image}", "--controlnet", "canny=nowhere"], "There is no model nowhere"),
        (["--control", "canny={image}", "--controlnet", "canny={image}"], "is not a file of weights"),
    ],
)
def test_what_cannot_be_controlled(
    generate: Run, reference: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert generate(*(flag.replace("{image}", str(reference)) for flag in flags)) == 2
    assert message in capsys.readouterr().err
    assert written() == []


def test_a_size_of_two_sides(generate: Run) -> None:
    assert generate("--size", "64x32") == 0
    assert pixels("out/on-the-beach-0.png").shape == (32, 64, 3)


def test_a_preset_chooses_the_precision_unless_it_is_said(generate: Run) -> None:
    fastest = "bfloat16" if has_bfloat16() else "float32"
    for number, (more, dtype) in enumerate(
        [((), "float32"), (("--preset", "exact"), fastest), (("--preset", "exact", "--dtype", "float32"), "float32")]
    ):
        assert generate("--out", str(number), *more) == 0
        made = read_request(Path(f"{number}/on-the-beach-0.png"))
        assert (made.dtype, made.preset) == (dtype, "exact" if more else "")
    whole, plain = pixels("2/on-the-beach-0.png").astype(int), pixels("0/on-the-beach-0.png")
    assert np.abs(whole - plain).max() <= 1


def test_each_flag_shows(generate: Run) -> None:
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
    assert len({pixels(path).tobytes() for path in written()}) == len(changes)


def test_a_page_of_all(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ("on the beach", "at the forest")
    assert generate("--num-images", 3, "--grid", "page.png", prompts=prompts) == 0
    assert capsys.readouterr().out.split()[-1] == "page.png"
    page = pixels("page.png")
    assert page.shape == (3 * 34 - 2, 3 * 34 - 2, 3)
    assert np.array_equal(page[34:66, 34:66], pixels("out/on-the-beach-1.png"))
    assert np.array_equal(page[68:, 68:], pixels("out/at-the-forest-2.png"))
    assert main(["generate", "--reproduce", "page.png", "--out", "again", "--grid", "twin.png"]) == 0
    assert np.array_equal(page, pixels("twin.png")) and len(list(Path("again").iterdir())) == 6


def test_a_page_overwrites_no_page_of_another_order(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for seed in (1, 2, 1):
        assert generate("--seed", seed, "--grid", "page.png") == 0
        pages.append(capsys.readouterr().out.split()[-1])
    assert pages == ["page.png", "page_2.png", "page.png"]
    assert np.array_equal(pixels("page.png")[:, 34:], pixels("out/on-the-beach-1.png"))
    assert np.array_equal(pixels("page_2.png")[:, 34:], pixels("out/on-the-beach-2.png"))


@pytest.mark.parametrize("kind", ["rotated", "RGBA", "CMYK", "I;16", "P"])
def test_references_of_every_kind(generate: Run, dog: Image.Image, kind: str) -> None:
    """Whatever its kind, the image of the dog is read as the dog: grey where the kind is, else in colours."""
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
    assert np.array_equal(pixels("odd/on-the-beach-0.png"), pixels("plain/on-the-beach-0.png"))


def test_too_long_a_prompt_warns_and_draws(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(prompts=("on the beach " * 20 + "red",)) == 0
    error = capsys.readouterr().err
    assert error.startswith("blip-diffusion: The prompt is too long for the text encoder; dropped from its end: '")
    assert error.endswith("red'\n") and error.count("\n") == 1
    assert len(written()) == 1


# ----------------------------------------------------------------------------------------------------------------- bad


def make_bad(name: str, huge_png: Callable[[int], Path]) -> list[str]:
    """Flags of something that can't be used."""
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
def test_bad_input_is_one_sentence(
    generate: Run, capsys: pytest.CaptureFixture[str], huge_png: Callable[[int], Path], name: str, sentence: str
) -> None:
    arguments = make_bad(name, huge_png)
    before = written()
    code = generate(*arguments)
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and written() == before
    assert printed.err.startswith("blip-diffusion: ") and sentence in printed.err
    assert printed.err.count("\n") == 1 and printed.err.endswith(".\n")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("plain.png", "plain.png holds no generation settings"),
        ("14200.png", "14200.png holds no generation settings"),
        ("nowhere.png", "There is no image at nowhere.png"),
    ],
)
def test_what_can_not_be_made_again(
    huge_png: Callable[[int], Path], capsys: pytest.CaptureFixture[str], path: str, sentence: str
) -> None:
    Image.new("RGB", (20, 20)).save("plain.png")
    huge_png(14_200)
    assert main(["generate", "--reproduce", path]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not Path("out").exists()


def retold(path: str, **told: object) -> str:
    """An image that says something else of its order."""
    order, known = json.loads(Image.open(path).info[METADATA]), PngImagePlugin.PngInfo()
    known.add_text(METADATA, json.dumps(order | told))
    Image.open(path).save("retold.png", pnginfo=known)
    return "retold.png"


def test_a_strangers_image_may_name_what_no_path_can_be(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    generate()
    net = {"kind": "canny", "net": "n" * 5000, "scale": 1.0, "picture": ""}
    subject = {"path": "n" * 5000, "weight": 1.0, "sha256": ""}
    for told in ({"model": "a" * 5000}, {"controls": [net]}, {"subjects": [subject]}):
        capsys.readouterr()
        assert main(["generate", "--reproduce", retold(written()[0], **told)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_another_versions_image_is_made_with_a_warning(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    generate()
    assert main(["generate", "--reproduce", retold(written()[0], version="0.0.9"), "--out", "again"]) == 0
    assert "made by blip-diffusion 0.0.9" in capsys.readouterr().err


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
def test_again_takes_no_other_order(
    generate: Run, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    assert generate() == 0
    capsys.readouterr()
    assert main(["generate", *more, "--reproduce", "out/on-the-beach-0.png"]) == 2
    assert f"remove {named}, or --reproduce" in capsys.readouterr().err
    assert written() == ["out/on-the-beach-0.png"]


@pytest.mark.parametrize("prompts", [(), ("",), ("on the beach", "  ")], ids=["none", "empty", "one of two"])
def test_an_empty_prompt(generate: Run, capsys: pytest.CaptureFixture[str], prompts: tuple[str, ...]) -> None:
    assert generate(prompts=prompts) == 2
    assert "rompt" in capsys.readouterr().err and written() == []


def test_an_empty_category(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--category", " ") == 2
    assert "The category is empty" in capsys.readouterr().err and written() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--num-images", "many"],
        ["generate", "--resize-mode", "stretch"],
        ["paint"],
        [],
        ["data"],
        ["generate", "--no-such-flag"],
    ],
)
def test_flags_that_do_not_exist(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: blip-diffusion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "nowhere.toml"], "The configuration nowhere.toml can't be read"),
        (["train", "bad.toml"], "is not a configuration key"),
        (["train", "good.toml", "--minutes", "0"], "minutes must be positive"),
        (["data", "sheet", "--dataset", "nowhere.zip"], "There is no dataset at nowhere.zip"),
        (["data", "sheet", "--dataset", WORLD, "--num-images", "0"], "--num-images is 0: use a number from 1"),
        (["data", "sheet", "--dataset", WORLD, "--out", "page"], "must be a file that ends in .png"),
        (["data", "sheet", "--dataset", WORLD, "--out", "good.toml/page.png"], "Nothing can be written to good.toml"),
        (["data", "build", "--out", "/proc/foo"], "Nothing can be written to /proc/foo: choose another --out"),
        (["data", "build", "--out", "good.toml"], "Nothing can be written to good.toml"),
        (["data", "build", "--out", "x", "--views", "0"], "--views is 0: use a number from 1 to 24"),
        (["data", "build", "--out", "x", "--views", "40"], "--views is 40"),
        (["data", "build", "--out", "x", "--size-limit", "0"], "--size-limit is 0: use a number above 0"),
        (["data", "build", "--out", "x", "--size-limit", "nan"], "--size-limit is nan"),
        (["data", "build", "--out", "x", "--size-limit", "inf"], "--size-limit is inf"),
        (
            ["data", "build", "--benchmark", "--out", "built", "--views", "4"],
            "--views has no effect with the existing built/world.zip",
        ),
        (
            ["data", "build", "--benchmark", "--out", "built", "--sources", "scratch"],
            "--sources has no effect with the existing built",
        ),
        ([*TUNE, "--num-vectors", "2"], "--num-vectors has no effect with --method few-shot"),
        ([*TUNE, "--train-text-encoder"], "--train-text-encoder has no effect with --method few-shot"),
        (
            [*TUNE, "--method", "dreambooth-lora", "--trainable", "unet"],
            "--trainable has no effect with --method dreambooth-lora",
        ),
        (
            [*TUNE, "--method", "textual-inversion", "--num-class-images", "8"],
            "--num-class-images has no effect with --method textual-inversion",
        ),
        (
            [*TUNE, "--trainable", "embedding", "--num-class-images", "8"],
            "--num-class-images has no effect with --trainable embedding",
        ),
        (
            [*TUNE, "--train-steps", "9", "--validation-prompts", "at sea", "on grass"],
            "--validation-prompts has no effect with --train-steps 9",
        ),
        (["evaluate", "--out", "x", "--trainable", "unet"], "--trainable has no effect with --condition zero-shot"),
        (["evaluate", "--out", "x", "--train-steps", "9"], "--train-steps has no effect with --condition zero-shot"),
        (
            ["generate", "x", "--subject", "nowhere", "--resize-mode", "pad"],
            "--resize-mode has no effect with --subject",
        ),
        (["convert", "mini", "--out", "/proc/x/y"], "Nothing can be written to /proc/x"),
        (["convert", "mini", "--out", "good.toml/y"], "Nothing can be written to good.toml"),
        (["convert", "mini", "--out", "out", "--rank", "4"], "--rank has no effect with --to folder"),
        (
            ["convert", "x.pth", "--to", "subject", "--out", "x", "--dtype", "float16"],
            "--dtype has no effect with --to",
        ),
    ],
)
def test_other_commands_say_what_is_wrong(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.toml").write_text('objective = "subject"\n[train]\nstepps = 3\n')
    Path("good.toml").write_text('objective = "subject"\n[train]\nsteps = 3\n')
    Path("built").mkdir()
    Path("built/world.zip").touch()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert written() == ["bad.toml", "built/world.zip", "good.toml"]


def test_a_page_of_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "sheet", "--dataset", WORLD, "--num-images", "2", "--out", "no/where.png"]) == 0
    assert capsys.readouterr().out.split() == written() == ["no/where.png"]


def test_many_are_drawn_a_few_at_once(
    generate: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command gives the same bytes, one page shows all, and an interrupt loses one batch."""
    long = "on the beach " * 20
    assert generate("--num-images", 11, "--steps", 1, "--grid", "page.png", "--out", "all", prompts=(long,)) == 0
    printed = capsys.readouterr()
    assert printed.err.count("dropped from its end") == 1
    assert len(printed.out.split()) == len(written()) == 12
    assert pixels("page.png").shape == (11 * 34 - 2, 2 * 34 - 2, 3)
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


def test_an_interrupt_is_no_traceback(
    generate: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "randn", interrupted)
    assert generate() == 130
    assert capsys.readouterr().err == "blip-diffusion: interrupted\n" and written() == []


# ------------------------------------------------------------------------------------------------- in its own process


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment)


def test_a_real_process(tiny_folder: Path, reference: Path) -> None:
    command = ["-m", "blip_diffusion", "generate", "on the beach", "--category", "dog"]
    ended = python(*command, "--model", str(tiny_folder), "--reference", str(reference))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "out/on-the-beach-0.png\n" and written() == ["out/on-the-beach-0.png"]
    assert "Traceback" not in ended.stderr and "Warning" not in ended.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from blip_diffusion.cli.main import main\n"
        f"try: main({arguments!r})\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules])"
    )
    ended = python("-c", code)
    assert ended.returncode == 0 and ended.stdout.rstrip().endswith("[]")


def test_an_interrupted_training_is_no_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell's `&&` must not go on to the stage that needs its export."""
    plain = PairSampler.__call__

    def stopped(self: PairSampler, index: int) -> SubjectBatch:
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, index)

    monkeypatch.setattr(PairSampler, "__call__", stopped)
    config = Path(__file__).parents[2] / "configs/debug/autoencoder.toml"
    how = ["--set", f"data.path={WORLD}", "--set", "train.device=cpu", "--set", "train.prefetch=0"]
    assert main(["train", str(config), "--out", str(tmp_path), *how]) == 130
    said = capsys.readouterr()
    assert "nothing exported; run it again with --resume latest to continue" in said.out
    assert said.err == "blip-diffusion: interrupted\n" and not (tmp_path / "export").exists()
    monkeypatch.undo()
    assert main(["train", str(config), "--out", str(tmp_path), *how, "--resume", "latest"]) == 0
    assert (tmp_path / "export" / "vae").is_dir()
