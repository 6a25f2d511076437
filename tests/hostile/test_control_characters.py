"""Terminal escapes in prompts, categories and names are refused at every entry point, in a sentence without them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from blip_diffusion import BlipDiffusionPipeline, config
from blip_diffusion.errors import BlipDiffusionError, ConfigError
from blip_diffusion.fileio import check_writable
from blip_diffusion.generation.png_metadata import METADATA
from blip_diffusion.training.objectives.dreambooth import DreamBoothConfig
from blip_diffusion.training.run_config import RunConfig

from .conftest import Attempt
from .images import encoded, noise

ESCAPE = "a\x1b]0;x\x07\x9b2J"
"""It would set the title of a terminal's window, and clear the window."""
REFERENCE = ("--reference", "dog.png")
COMMANDS: dict[str, tuple[object, ...]] = {
    "generate": ("generate", ESCAPE, "--category", "dog", *REFERENCE),
    "generate --prompts": ("generate", "--prompts", "prompts.txt", "--category", "dog", *REFERENCE),
    "generate --category": ("generate", "x", "--category", ESCAPE, *REFERENCE),
    "generate --target-category": ("generate", "x", "--category", "dog", "--target-category", ESCAPE, *REFERENCE),
    "generate --negative-prompt": ("generate", "x", "--negative-prompt", ESCAPE, "--category", "dog", *REFERENCE),
    "generate --out": ("generate", "x", "--category", "dog", *REFERENCE, "--out", ESCAPE),
    "generate --grid": ("generate", "x", "--category", "dog", *REFERENCE, "--grid", f"{ESCAPE}/grid.png"),
    "generate --embedding": ("generate", "x", "--category", "dog", *REFERENCE, "--embedding", "word.safetensors"),
    "generate, second subject": (
        "generate", "x", "--category", "dog", "--category", ESCAPE, *REFERENCE, *REFERENCE
    ),
    "edit": ("edit", "dog.png", "--from", "dog", "--to", "cat", *REFERENCE, "--prompt", ESCAPE),
    "edit --from": ("edit", "dog.png", "--from", ESCAPE, "--to", "cat", *REFERENCE),
    "edit --to": ("edit", "dog.png", "--from", "dog", "--to", ESCAPE, *REFERENCE),
    "inpaint": ("inpaint", "dog.png", "--mask", "dog.png", "--category", ESCAPE, *REFERENCE),
    "tune --category": ("tune", "dog.png", "--category", ESCAPE, "--name", "rex"),
    "tune --name": ("tune", "dog.png", "--category", "dog", "--name", ESCAPE),
    "tune --out": ("tune", "dog.png", "--category", "dog", "--name", "rex", "--out", f"{ESCAPE}.safetensors"),
    "tune --validation-prompts": (
        "tune", "dog.png", "--category", "dog", "--name", "rex", "--validation-prompts", "x", ESCAPE
    ),
    "invent": ("invent", ESCAPE, "--out", "teapot.safetensors"),
    "invent --out": ("invent", "teapot", "--out", f"{ESCAPE}.safetensors"),
    "convert --out": ("convert", "model", "--out", ESCAPE),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _inputs(tmp_path: Path) -> None:
    (tmp_path / "dog.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "prompts.txt").write_text(f"on the beach\n{ESCAPE}\n")
    save_file({ESCAPE: torch.ones(1, 32)}, tmp_path / "word.safetensors")


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_commands_refuse_them(words: tuple[object, ...], attempt: Attempt, tiny_folder: Path) -> None:
    model = () if words[0] == "convert" else ("--model", tiny_folder)
    assert attempt(*words, *model) == 2
    assert not {path.name for path in Path().rglob("*")} - {"dog.png", "prompts.txt", "word.safetensors"}


def test_settings_in_a_png_are_refused(attempt: Attempt) -> None:
    assert attempt("generate", "x", "--reference", "dog.png", "--category", "dog", "--steps", 1) == 0
    with Image.open("out/x-0.png") as image:
        table = json.loads(image.info[METADATA])
        for name in ("prompt", "category", "target_category", "negative_prompt", "model", "preset"):
            metadata = PngImagePlugin.PngInfo()
            metadata.add_text(METADATA, json.dumps(table | {name: ESCAPE}))
            image.save("changed.png", pnginfo=metadata)
            assert attempt("generate", "--reproduce", "changed.png", "--out", "again") == 2


def test_logs_of_libraries_quote_files_without_them(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    path = tmp_path / "model/text_encoder/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": {"rope_type": ESCAPE}}))
    words = ["generate", "x", "--reference", "dog.png", "--category", "dog", "--steps", "1", "--model", "model"]
    command = [sys.executable, "-m", "blip_diffusion", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300, check=True)
    assert rb"\x1b]0;x\x07" in ended.stderr and b"\x1b" not in ended.stderr


def test_captions_beside_photos_are_refused(attempt: Attempt, tiny_folder: Path) -> None:
    Path("dog.txt").write_text(f"a dog {ESCAPE}")
    assert attempt("tune", "dog.png", "--category", "dog", "--name", "rex", "--model", tiny_folder) == 2


def calls(pipe: BlipDiffusionPipeline, dog: Image.Image) -> list[Callable[[], Any]]:
    one = {"num_inference_steps": 1}
    return [
        lambda: pipe(ESCAPE, dog, "dog", **one),
        lambda: pipe("x", dog, ESCAPE, **one),
        lambda: pipe("x", dog, "dog", ESCAPE, **one),
        lambda: pipe(["x", ESCAPE], dog, "dog", **one),
        lambda: pipe("x", dog, "dog", negative_prompt=ESCAPE, **one),
        lambda: pipe.encode_subject(dog, ESCAPE),
        lambda: pipe.edit(dog, ESCAPE, "cat", dog, **one),
        lambda: pipe.edit(dog, "dog", ESCAPE, dog, **one),
        lambda: pipe.edit(dog, "dog", "cat", dog, prompt=ESCAPE, **one),
        lambda: pipe.inpaint(dog, dog, dog, ESCAPE, **one),
        lambda: check_writable(Path(ESCAPE)),
        lambda: DreamBoothConfig(token=ESCAPE),
        lambda: pipe.load_textual_inversion({ESCAPE: torch.ones(32)}),
    ]


@pytest.mark.parametrize("number", range(13))
def test_calls_refuse_them(pipe: BlipDiffusionPipeline, dog: Image.Image, number: int) -> None:
    with pytest.raises(BlipDiffusionError) as caught:
        calls(pipe, dog)[number]()
    assert "\x1b" not in str(caught.value)


def test_configurations_refuse_them() -> None:
    table = config.read(None, ['objective="subject"', r'data.category="a\u001b[2J"'])
    with pytest.raises(ConfigError, match="must be text without control characters") as caught:
        config.build(RunConfig, table)
    assert str(caught.value).isprintable()
