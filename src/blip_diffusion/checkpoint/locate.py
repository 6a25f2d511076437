"""Locate weights: the shipped model, a path on this machine, or a repository of the hub.

A mistyped path is never sent to the hub: see `is_hub_id`.
"""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip_diffusion.checkpoint.weights import SAFE
from blip_diffusion.errors import CheckpointError, InputError, reason
from blip_diffusion.fileio import as_path, path_exists
from blip_diffusion.pickles import PICKLES

ASSETS = Path(__file__).parents[1] / "assets"
UNREAD_FILES = ("vision_encoder/*", "safety_checker/*", "feature_extractor/*", "*.msgpack", "*.ckpt", "*.onnx*")
"""Files of repositories that are not part of the model and are not downloaded."""


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name that is not an existing path can be a repository, owner/name.

    A name with the suffix of a file of weights, or within an existing folder, is a mistyped path.
    """
    text = str(name)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", text):
        return False
    return not text.lower().endswith((SAFE, *PICKLES)) and not path_exists(Path(text).parent, Path.is_dir)


def check_source(name: str | Path, what: str) -> None:
    """Raise `CheckpointError` for a name that is neither an existing path nor a hub id. `what` names it: "LoRA"."""
    if not path_exists(Path(name)) and not is_hub_id(name):
        raise CheckpointError(f"There is no {what} at {name}: check the path, or give a hub id such as owner/name.")


def find_model(name_or_path: str | Path, **hub: Any) -> Path:
    """Return the folder of a model: `mini`, a folder, or a hub id, which is downloaded."""
    if isinstance(name_or_path, str) and not name_or_path.strip():  # as of an unset variable of the shell
        raise CheckpointError("The name of the model is empty: use mini, a folder, or a hub id such as owner/name.")
    as_path("name_or_path", name_or_path)
    if hub:
        _check_hub(hub)
    if name_or_path == "mini":
        return ASSETS / "mini"
    if path_exists(Path(name_or_path), Path.is_dir):
        return Path(name_or_path)
    if not is_hub_id(name_or_path):
        raise CheckpointError(f"There is no model {name_or_path}: use mini, a folder, or a hub id such as owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the HTTP library that it uses

    try:
        return Path(snapshot_download(str(name_or_path), **{"ignore_patterns": UNREAD_FILES, **hub}))
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"There is no folder {name_or_path}, and the hub can't provide it ({reason(error)}): check the name."
        ) from error


def _check_hub(options: Mapping[str, Any]) -> None:
    """Raise `InputError` for an option that `snapshot_download` doesn't have."""
    from huggingface_hub import snapshot_download

    known = inspect.signature(snapshot_download).parameters
    if unknown := [name for name in options if name not in known]:
        raise InputError(f"{unknown[0]} can't be chosen for a model that is loaded: leave it out.")
