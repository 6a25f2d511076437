"""`generate`: sources of the subject, prompts from a file, printed output, and invalid arguments."""

import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from blip_diffusion.checkpoint.adapter_refs import embedding_ref, lora_ref
from blip_diffusion.cli.main import main
from blip_diffusion.escaping import printable
from blip_diffusion.generation.png_metadata import read_request
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.generation.run import prepared
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.checkpoint.loras import lora_of

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dog: Image.Image) -> None:
    """Resolve relative paths in a folder with two images."""
    monkeypatch.chdir(tmp_path)
    dog.save("dog.png")
    dog.rotate(90, expand=True).save("side.png")


@pytest.fixture
def generate(tiny_folder: Path) -> Run:
    def run(*arguments: object) -> int:
        return main([str(a) for a in ("generate", "--model", tiny_folder, "--steps", 2, "--seed", 3, *arguments)])

    return run


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# -------------------------------------------------------------------------------------------- inputs of the command


def test_several_references_are_averaged(generate: Run, tiny_folder: Path) -> None:
    both = ("--reference", "dog.png", "--reference", "side.png", "--category", "dog")
    assert generate("on the beach", *both) == 0
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    tokens = pipe.encode_subject([Image.open("dog.png"), Image.open("side.png")], "dog")
    options = {"subject_embeds": tokens, "num_inference_steps": 2, "generator": torch.Generator().manual_seed(3)}
    (alike,) = pipe("on the beach", target_subject_category="dog", **options).images
    assert np.array_equal(pixels("out/on-the-beach-3.png"), np.asarray(alike))
    Path("dog.png").unlink()
    assert main(["generate", "--reproduce", "out/on-the-beach-3.png", "--out", "again"]) == 0
    assert Path("again/on-the-beach-3.png").read_bytes() == Path("out/on-the-beach-3.png").read_bytes()


@pytest.fixture
def lora(tiny_folder: Path) -> Path:
    """A LoRA of one layer with a visible effect."""
    return lora_of(tiny_folder, Path("style.safetensors"))


def test_loras_and_embeddings_are_used_and_reproduced(generate: Run, lora: Path) -> None:
    save_file({"<rex>": torch.randn(2, 32)}, "rex.safetensors")
    options = ("on the beach", "--reference", "dog.png", "--category", "dog")
    word = ("on the beach", "--embedding", "rex.safetensors", "--category", "<rex>")
    runs = {
        "plain": options,
        "style": (*options, "--lora", lora),
        "half": (*options, "--lora", f"{lora}:0.5"),
        "none": (*options, "--lora", f"{lora}:0"),
        "word": word,
        "both": (*word, "--lora", lora),
    }
    for name, flags in runs.items():
        assert generate(*flags, "--out", name) == 0
    images = {name: pixels(f"{name}/on-the-beach-3.png").tobytes() for name in runs}
    assert images["none"] == images["plain"] and len(set(images.values())) == len(runs) - 1
    assert main(["generate", "--reproduce", "both/on-the-beach-3.png", "--out", "again", "--grid", "page.png"]) == 0
    assert Path("again/on-the-beach-3.png").read_bytes() == Path("both/on-the-beach-3.png").read_bytes()


def test_a_request_leaves_nothing_in_a_shared_pipeline(fresh_pipe: BlipDiffusionPipeline, lora: Path) -> None:
    """LoRAs and new words of one request are not loaded for the next one, which may load them again."""
    save_file({"<rex>": torch.randn(2, 32)}, "rex.safetensors")
    plain = GenerationRequest(("on the beach",), Path("dog.png").read_bytes(), "dog", "dog", steps=2)
    loras, embeddings = (lora_ref(lora, 0.5),), (embedding_ref(Path("rex.safetensors")),)
    styled = replace(plain, loras=loras, embeddings=embeddings, category="<rex>", target_category="<rex>")

    def generated(request: GenerationRequest) -> bytes:
        with prepared(fresh_pipe, request) as ready:
            return ready.generate([("on the beach", 3)])[0].tobytes()

    vocabulary = len(fresh_pipe.tokenizer)
    first, second, third, fourth = (generated(one) for one in (plain, styled, plain, styled))
    assert first == third != second == fourth
    assert len(fresh_pipe.tokenizer) == vocabulary and not fresh_pipe.get_list_adapters()


def test_changed_lora_is_refused(generate: Run, lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("x", "--lora", lora, "--category", "dog") == 0
    lora.write_bytes(lora.read_bytes()[:-1] + b"\1")
    assert main(["generate", "--reproduce", "out/x-3.png"]) == 2
    assert "style.safetensors has changed since the image was generated" in capsys.readouterr().err


def test_prompts_are_read_from_a_file(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("scenes.txt").write_text("\ufeffin the\u2028snow\n\n  на пляже  \n", encoding="utf-8")
    flags = ("--prompts", "scenes.txt", "--reference", "dog.png", "--category", "dog", "--json")
    assert generate("on the beach", *flags, "--grid", "page.png") == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt"] for one in printed] == ["on the beach", "in the\u2028snow", "на пляже", None]
    assert [one["path"] for one in printed[2:]] == ["out/на-пляже-3.png", "page.png"]
    assert read_request(Path(printed[1]["path"])).prompts == ("in the\u2028snow",)


def test_quiet_prints_only_errors(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--reference", "dog.png", "--category", "dog", "--quiet")
    assert generate("on the beach " * 40, *flags) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["generate", "x", *flags, "--model", "."]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_random_seed_is_in_the_file_name(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["generate", "x", "--model", ".", "--reference", "dog.png", "--category", "a", "--seed", "-1"]) == 2
    flags = ["generate", "x", "--reference", "dog.png", "--category", "dog", "--seed", "random", "--steps", "1"]
    capsys.readouterr()
    assert main([*flags, "--json"]) == 0
    (messages,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert messages["path"] == f"out/x-{messages['seed']}.png" and messages["seed"] != 0


# ------------------------------------------------------------------------------------------------------------- mistakes

SOURCE = ["--reference", "dog.png", "--category", "dog"]
AT_ONCE = {
    "": "A prompt, --reference FILE and --category WORD are needed",
    "x --reference dog.png": "A prompt, --reference FILE and --category WORD are needed",
    "x --reference gone.png --category dog": "There is no image at gone.png",
    "x --subject gone.safetensors:0.5": "There is no subject at gone.safetensors",
    "x --category dog --lora gone.safetensors": "There is no LoRA at gone.safetensors",
    "x --category dog --embedding gone.bin": "There is no embedding at gone.bin",
    "x --category dog --lora dog.png --resize-mode pad": "--resize-mode has no effect without --reference",
    "--prompts gone.txt --reference dog.png --category dog": "There is no list of prompts at gone.txt",
    "--prompts . --reference dog.png --category dog": "There is no list of prompts at .",
    "x --reference dog.png --category dog --steps 0": "--steps is 0",
    "x --reference dog.png --category dog --num-images 2 --seed 9223372036854775807": "use a number from 0 to 2^63 - 2",
    "x --reference dog.png --category dog --category cat": "There are 1 --reference for 2 --category",
    "x --reference dog.png --category dog --box 0 0 1 1 --box 0 0 1 1": "There are 2 --box for 1 subject:",
    "x --reference dog.png --reference dog.png --category a --category b --box 0 0 1 1": "There are 1 --box for 2",
    "x --reference dog.png --category dog --blend 0.5,0.5": "There is one subject: a mixture needs two",
    "x --reference dog.png --reference dog.png --category a --category b --blend 1,x": "--blend 1,x has the number 'x'",
    "x --reference dog.png --category dog --subject-scale left=1": "--subject-scale has no block 'left'",
    "x --reference dog.png --category dog --controlnet map=a --controlnet map=b": "--controlnet map is given twice",
}


def test_invalid_arguments_are_found_before_torch_is_imported() -> None:
    program = (
        "import json, sys; from blip_diffusion.cli.main import main\n"
        "for line in json.load(sys.stdin):\n"
        "    assert main(['generate', *line.split()]) == 2 and 'torch' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(list(AT_ONCE)), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    for line, sentence in zip(ended.stderr.splitlines(), AT_ONCE.values(), strict=True):
        assert sentence in line


@pytest.mark.parametrize(
    "line",
    [
        "generate x --region-mode attention --region-mode attention",
        "generate x --seed 1 --seed 1",
        "tune a.png --name a --name b --category dog",
        "train a.toml --out a --out b",
        "evaluate --out a --model a --model b",
        "convert a --out a --to lavis --to lavis",
        "data sheet --seed 1 --seed 2",
    ],
)
def test_repeated_flags_are_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2 and "is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["x" * 10_001, *SOURCE], "A prompt has 10001 characters"),
        ([*map(str, range(11)), *SOURCE, "--num-images", "1000"], "11 prompts with 1000 images are 11000"),
        (["caf\udce9", *SOURCE], "is not UTF-8"),
        (["x", "--reference", "\x1b[31m.png", "--category", "dog"], "There is no image at \\x1b[31m.png"),
        (["x", "--reference", "a\nblip-diffusion: all is well", "--category", "dog"], "a\\nblip-diffusion"),
        (["x", "--reference", "n" * 5000, "--category", "dog"], "There is no image at nnn"),
    ],
)  # fmt: skip
def test_control_characters_are_escaped_in_messages(
    capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    assert main(["generate", *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and len(error) < 2100 and "\x1b" not in error


def test_letters_of_all_scripts_are_printed() -> None:
    assert printable("雪の中　на пляже 👩‍🎨 naïve") == "雪の中　на пляже 👩‍🎨 naïve"
    assert printable("\u202ednim") == "\\u202ednim"


def test_ascii_terminal_prints_escaped_paths(generate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert generate("雪の中", *SOURCE) == 0
    narrow.flush()
    assert narrow.buffer.getvalue() == b"out/\\u96ea\\u306e\\u4e2d-3.png\n"  # type: ignore[attr-defined]


@pytest.fixture
def _small_files() -> Iterator[None]:
    """No file can be larger than 1000 bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("_small_files")
def test_full_disk_is_reported_and_leaves_no_file(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("x", *SOURCE) == 1
    error = capsys.readouterr().err
    assert "The disk is full" in error and error.count("\n") == 1
    assert not list(Path("out").iterdir())
