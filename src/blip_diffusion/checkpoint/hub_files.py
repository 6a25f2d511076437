"""LoRAs and networks of the hub: downloaded first, so that they are checked as any other file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the HTTP library that it uses

from blip_diffusion.checkpoint.locate import find_model, is_hub_id
from blip_diffusion.checkpoint.weights import SAFE
from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.fileio import path_exists
from blip_diffusion.pickles import PICKLES

OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
"""Options of diffusers that choose where the hub's files come from."""
DESCRIPTIONS = ("*.json", "*.txt")
"""Files of a network beside its weights."""
OTHERS = ("scheduler", "optimizer", "checkpoint")
"""Parts of the names of files that are no adapters, as in diffusers."""


def local_file(source: Any, names: Sequence[str], what: str, *, listing: bool = False, **options: Any) -> Any:
    """Return a source, or the path of a downloaded file if it is a hub id.

    Args:
        source: A hub id; anything else is returned as it is.
        names: The usual names of such a file, in order of preference.
        what: What it is: "LoRA".
        listing: Whether any other file of weights in the repository will do.
        **options: Those of diffusers: `weight_name`, `subfolder`, `use_safetensors`, and `OPTIONS`.

    Raises:
        CheckpointError: If the hub or its cache on this machine has no such file.
    """
    if not isinstance(source, str | Path) or path_exists(Path(source)) or not is_hub_id(source):
        return source
    hub = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    subfolder = options.get("subfolder")
    if options.get("weight_name"):
        names = [options["weight_name"]]
    elif listing:
        names = [*names, *_listed(str(source), subfolder, hub)]
    if options.get("use_safetensors"):
        names = [name for name in names if name.endswith(SAFE)]
    return _first(str(source), names, what, subfolder=subfolder, **hub)


def local_folder(name: str) -> str:
    """Return the name of a network's folder; that of a hub id is downloaded, with pickles only if it has nothing else.

    Raises:
        CheckpointError: If neither the hub nor its cache on this machine has it.
    """
    if path_exists(Path(name)) or not is_hub_id(name):
        return name
    folder = find_model(name, allow_patterns=[*DESCRIPTIONS, f"*{SAFE}"])
    if not any(folder.glob(f"*{SAFE}")):
        folder = find_model(name, allow_patterns=[*DESCRIPTIONS, "*.bin"])
    return str(folder)


def _first(repository: str, names: Sequence[str], what: str, **hub: Any) -> Path:
    """Download the first of these files that there is."""
    missing: Exception | None = None
    for name in sorted(names, key=lambda name: not name.endswith(SAFE)):
        try:
            return Path(hf_hub_download(repository, name, **hub))
        except EntryNotFoundError as error:  # also that of the cache, without a network
            missing = error
        except (httpx.HTTPError, OSError, ValueError) as error:
            missing = error
            break
    detail = f" ({reason(missing)})" if missing else ""
    raise CheckpointError(
        f"The {what} can't be read: the hub can't provide {' or '.join(names[:2])} of {repository}{detail}; check the "
        "name, or give weight_name."
    ) from missing


def _listed(repository: str, subfolder: str | None, hub: dict[str, Any]) -> list[str]:
    """Return the files of weights in a repository that may be an adapter; none without a network."""
    if hub.get("local_files_only"):
        return []
    try:
        files = list_repo_files(repository, revision=hub.get("revision"), token=hub.get("token"))
    except (httpx.HTTPError, OSError, ValueError):
        return []
    start = f"{subfolder}/" if subfolder else ""
    inside = [name.removeprefix(start) for name in files if name.startswith(start)]
    return [name for name in inside if name.endswith((SAFE, *PICKLES)) and not any(part in name for part in OTHERS)]
