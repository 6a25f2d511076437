"""Checks of LoRA files: refuse other kinds of adapters, whose tensors would be ignored, and unsafe settings."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from blip_diffusion.checkpoint.weights import SAFE, read_file
from blip_diffusion.errors import CheckpointError
from blip_diffusion.pickles import PICKLES, check_pickles

OTHER_ADAPTERS = {
    ".hada_": "a LoHa", ".lokr_": "a LoKr", ".oft_": "an OFT", ".oft_blocks": "an OFT", ".on_input": "an IA3",
    ".lora_mid.": "a LoCon with a Tucker decomposition", ".diff": "a full difference of weights",
    ".a1.weight": "a GLoRA", "bundle_emb.": "a LoRA with embeddings",
}  # fmt: skip
"""Parts of tensors' names that identify other adapters, as kohya's scripts and web UIs write them."""
MAX_SCALE = 1e6
"""Largest alpha, and largest other number of the settings."""
SETTINGS: dict[str, Any] = {
    "r": int, "lora_alpha": int | float, "alpha_pattern": dict, "rank_pattern": dict, "use_rslora": bool,
    "target_modules": list | str, "use_dora": bool,
}  # fmt: skip
"""Types of the settings in a header; ranks and layers are those of the tensors, and other settings have no effect."""


def check_lora_source(source: Any, weight_name: str | None = None, subfolder: str | None = None) -> None:
    """Raise `CheckpointError` for a state dict, file or folder that is another kind of adapter."""
    if isinstance(source, Mapping):
        check_lora_names(source)
        return
    path = Path(source) / (subfolder or "") / (weight_name or "") if Path(source).is_dir() else Path(source)
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"The LoRA can't be read: {path} is a folder of PEFT's save_pretrained; save the LoRA with the pipeline's "
            "save_lora_weights."
        )
    if path.is_dir():
        check_pickles(path)
    if not path.is_file():
        return
    if path.suffix in PICKLES:
        check_lora_names(read_file(path))
    if path.suffix == SAFE:
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            header, names = file.metadata() or {}, list(file.keys())
    except Exception as error:  # for damaged files, safetensors raises errors of many types
        raise CheckpointError(f"The LoRA can't be read: {path} is not a file of weights; fetch it again.") from error
    if "blip-diffusion" in header:
        raise CheckpointError(f"{path} is a tuned subject, not a LoRA: use pipe.load_subject, or --subject.")
    check_lora_names(names)


def check_lora_names(names: Iterable[str]) -> None:
    """Raise `CheckpointError` if tensors belong to another kind of adapter than LoRA."""
    for name in names:
        for part, kind in OTHER_ADAPTERS.items():
            if part in str(name):
                raise CheckpointError(
                    f"The LoRA can't be read: it is {kind} ({str(name)[:200]!r}), which isn't supported; only "
                    "LoRA and DoRA layers are."
                )


def check_settings(alphas: Any, metadata: Any) -> None:
    """Raise `CheckpointError` for alphas that are not positive, and for layers' names that are regular expressions.

    Args:
        alphas: By names of layers, as in kohya's files, or `None`.
        metadata: The settings in the header, after the part's name, or `None`.
    """
    for name, value in (alphas or {}).items():
        _check_alpha(name, value)
    if not isinstance(metadata, Mapping | None):
        raise _unusable("settings")
    for key, value in (metadata or {}).items():
        name = str(key).rpartition(".")[2]
        if name in SETTINGS and not isinstance(value, SETTINGS[name]):
            raise _unusable(key)
        if name in SETTINGS and not _is_plain(value):
            raise _unusable(key)
        for one in value.values() if isinstance(value, Mapping) else (value,):
            if name in ("lora_alpha", "alpha_pattern"):
                _check_alpha(key, one)


def _check_alpha(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise _unusable(name)
    if not 0 < float(value) <= MAX_SCALE:  # false for NaN too
        raise CheckpointError(f"The LoRA has the alpha {float(value)} ({str(name)[:200]!r}): it is damaged.")


def _unusable(key: Any) -> CheckpointError:
    return CheckpointError(
        f"The LoRA's header has a {str(key)[:200]!r} that can't be used: use plain words and positive numbers."
    )


def _is_plain(value: Any) -> bool:
    """Return whether a setting is a word, a number, or a list or table of them; PEFT reads other text as patterns."""
    if isinstance(value, Mapping):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    if isinstance(value, str):
        return bool(re.fullmatch(r"[\w.\-/ ]*", value))
    return value is None or (isinstance(value, int | float) and abs(value) <= MAX_SCALE)
