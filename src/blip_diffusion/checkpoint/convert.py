"""Convert models between this library's layout and LAVIS', or replace a U-Net or VAE."""

import shutil
from pathlib import Path
from typing import Literal

import torch

from blip_diffusion.checkpoint import lavis
from blip_diffusion.checkpoint.components import HEADS
from blip_diffusion.checkpoint.lavis import LavisCheckpoint
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import (
    CONSISTENCY_LORA,
    PARTS,
    assemble,
    check_fit,
    read_parts,
    save_model,
)
from blip_diffusion.checkpoint.single_component import load_unet, load_vae
from blip_diffusion.checkpoint.weights import read_file, read_json, save_state
from blip_diffusion.errors import CheckpointError
from blip_diffusion.escaping import warn
from blip_diffusion.fileio import EARLIER, check_result, replace_path, scratch_dir
from blip_diffusion.model import BlipDiffusion

ARCHIVES = (".tar", ".tar.gz", ".tgz")
SUBJECT = "lavis-subject.safetensors"
OURS = {*PARTS, "model_index.json", CONSISTENCY_LORA, HEADS, SUBJECT, *(Path(file).parts[0] for file in lavis.FILES)}
"""Files and folders of a model in either layout."""
NOTICES = ("README*", "LICEN[CS]E*")


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
    """Convert a model between this library's folder and LAVIS' files, optionally with another U-Net or VAE.

    Heads of stage 1, a tuned subject of LAVIS, and the folder's README and licences are kept. A consistency LoRA is
    kept with its U-Net in this library's layout; otherwise it is left out with a warning.

    Args:
        source: `mini`, a model's folder, a hub id, LAVIS' folder or archive, or a checkpoint of LAVIS' tuning.
        out: The new folder. It may be the source or an earlier model; other files in it are kept.
        to: The layout to write.
        base: The model that a checkpoint of LAVIS' tuning was tuned from.
        unet: A folder or Stable Diffusion 1.5 file that replaces the model's U-Net.
        vae: A folder or Stable Diffusion 1.5 file that replaces the model's VAE.
        dtype: The float type of the written weights; default: unchanged.

    Raises:
        InputError: If `out` cannot be written or holds something else.
        CheckpointError: If the source cannot be read or its parts do not fit; nothing is written.
    """
    check_result(out)
    _check_free(out)
    path = Path(source) if Path(source).is_file() else find_model(source)
    out = out.resolve()  # the target of a link is replaced, not the link
    with scratch_dir(out) as scratch:
        original = _read(path, scratch / "unpacked", base)
        if unet is not None:
            original.model.unet = load_unet(unet, config=original.model.unet.config)
            _drop_lora(original, "it was for the other U-Net")
        if vae is not None:
            original.model.vae = load_vae(vae, config=original.model.vae.config)
        check_fit(original.model)
        result = scratch / "made"
        if to == "lavis":
            _drop_lora(original, "LAVIS' layout can't hold it")
            lavis.write_lavis(original, result, dtype=dtype)
        else:
            _write(original, result, dtype)
        for notice in _notices(path):
            shutil.copy2(notice, result / notice.name)
        _keep_others(out, result)
        replace_path(result, out, aside=scratch / EARLIER)


def _drop_lora(original: LavisCheckpoint, why: str) -> None:
    if original.consistency_lora is not None:
        warn(f"The model's consistency LoRA is left out: {why}.", stacklevel=3)
        original.consistency_lora = None


def _check_free(out: Path) -> None:
    """Raise `InputError` unless `out` is free or holds a model."""
    if out.is_dir() and (not any(out.iterdir()) or _is_ours(out)):
        return
    if out.exists():
        raise CheckpointError(f"{out} exists already and isn't a model's folder: choose another --out.")


def _is_ours(folder: Path) -> bool:
    index = folder / "model_index.json"
    kind = str(read_json(index).get("_class_name", "")) if index.is_file() else ""
    return kind.startswith("BlipDiffusion") or lavis.is_original(folder)


def _keep_others(out: Path, result: Path) -> None:
    """Copy the files that are not part of a model, such as notes, to the folder that replaces it."""
    notices = _notices(out)  # of the model that is replaced
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if path.name not in OURS and path not in notices and not (result / path.name).exists():
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, result / path.name, symlinks=True)
            else:
                shutil.copy2(path, result / path.name, follow_symlinks=False)


def _read(path: Path, scratch: Path, base: str | None) -> LavisCheckpoint:
    if path.name.endswith(ARCHIVES) and path.is_file():
        return lavis.read_lavis(lavis.unpack(path, scratch), base=_model(base) if base else None)
    if path.is_dir() and lavis.is_original(path):
        return lavis.read_lavis(path, base=_model(base) if base else None)
    if path.is_file():
        if base is None:
            raise CheckpointError(f"{path} is one file: name the model that it was tuned from with --base.")
        return lavis.read_tuned(path, _model(base))
    parts = read_parts(path)
    heads, subject = (read_file(path / name) if (path / name).is_file() else {} for name in (HEADS, SUBJECT))
    return LavisCheckpoint(
        assemble(parts, path), heads, subject.get("subject"), parts.controlnet, parts.consistency_lora
    )


def _notices(source: Path) -> list[Path]:
    """Return the README and licence files of a model's folder."""
    return [path for kind in NOTICES for path in sorted(source.glob(kind)) if path.is_file()]


def _model(name: str) -> BlipDiffusion:
    folder = find_model(name)
    return assemble(read_parts(folder), folder)


def _write(original: LavisCheckpoint, folder: Path, dtype: torch.dtype | None) -> None:
    more = {"controlnet": original.controlnet, "consistency_lora": original.consistency_lora}
    save_model(original.model, folder, **more, dtype=dtype)
    if original.heads:
        save_state(original.heads, folder / HEADS)
    if original.subject is not None:
        save_state({"subject": original.subject}, folder / SUBJECT)
