"""From any layout to any: ours, LAVIS', with another U-Net or VAE. What is written is there whole or not at all."""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch

from blip_diffusion.checkpoint import lavis
from blip_diffusion.checkpoint.files import check_writable, read_file, save_state
from blip_diffusion.checkpoint.folder import check_fit, find_model, load_unet, load_vae, read_parts, save_model, whole
from blip_diffusion.checkpoint.lavis import Original
from blip_diffusion.errors import CheckpointError
from blip_diffusion.model import BlipDiffusion

ARCHIVES = (".tar", ".tar.gz", ".tgz")
HEADS, SUBJECT = "heads.safetensors", "lavis-subject.safetensors"


def convert(
    source: str,
    out: Path,
    *,
    to: Literal["folder", "lavis"] = "folder",
    base: str | None = None,
    unet: str | None = None,
    vae: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the model of `source` to `out`.

    `source` is `mini`, a model's folder, a hub id, LAVIS' folder or archive, or what LAVIS' tuning saved, which needs
    its `base`. `unet` and `vae` are folders or Stable Diffusion 1.5 files that replace the model's. Stage 1's heads
    and a tuned subject of LAVIS are kept beside the model. Raises `CheckpointError` before anything is written.
    """
    check_writable(out.parent)
    _check_free(out)
    out = out.resolve()  # where `out` is a link, what it leads to is replaced
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        original = _read(source, Path(scratch) / "unpacked", base)
        if unet is not None:
            original.model.unet = load_unet(unet, config=original.model.unet.config)
        if vae is not None:
            original.model.vae = load_vae(vae, config=original.model.vae.config)
        check_fit(original.model)
        made = Path(scratch) / "made"
        if to == "lavis":
            lavis.write_original(original, made, dtype=dtype)
        else:
            _write(original, made, dtype)
        if out.exists():
            shutil.rmtree(out)
        made.replace(out)


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "model_index.json").is_file())):
        raise CheckpointError(f"{out} is there already and is no model's folder: choose another --out.")


def _read(source: str, scratch: Path, base: str | None) -> Original:
    path = Path(source)
    if path.name.endswith(ARCHIVES) and path.is_file():
        return lavis.read_original(lavis.unpack(path, scratch), base=_model(base) if base else None)
    if path.is_dir() and lavis.is_original(path):
        return lavis.read_original(path, base=_model(base) if base else None)
    if path.is_file():
        if base is None:
            raise CheckpointError(f"{path} is one file: say with --base which model it was tuned from.")
        return lavis.read_tuned(path, _model(base))
    folder = find_model(source)
    heads = read_file(folder / HEADS) if (folder / HEADS).is_file() else {}
    return Original(whole(read_parts(folder), folder), heads)


def _model(name: str) -> BlipDiffusion:
    folder = find_model(name)
    return whole(read_parts(folder), folder)


def _write(original: Original, folder: Path, dtype: torch.dtype | None) -> None:
    save_model(original.model, folder, dtype=dtype)
    if original.heads:
        save_state(original.heads, folder / HEADS)
    if original.subject is not None:
        save_state({"subject": original.subject}, folder / SUBJECT)
