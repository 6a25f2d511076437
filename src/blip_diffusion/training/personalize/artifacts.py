"""Files of a personalization run: where results go, what a resumed run must match, and the clean-up at the end."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from blip_diffusion.checkpoint.adapter_refs import EmbeddingRef, LoraRef
from blip_diffusion.checkpoint.subject_file import check_place, read_subject, write_subject
from blip_diffusion.checkpoint.weights import read_json
from blip_diffusion.data.photos import Photo
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.fileio import as_path, check_result, path_exists
from blip_diffusion.strict_json import parse_json
from blip_diffusion.training import checkpointing
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.personalize.early_stopping import BEST, Score, Validation
from blip_diffusion.training.run import CHECKPOINTS, Result
from blip_diffusion.training.trainer import EXPORT

RUN_INFO = "run.json"
"""File with a tuning's photos and settings: it marks the folder, and a resumed run is compared with it."""


RESUMABLE = ("device", "gradient_checkpointing")
"""Settings that may differ when a run is resumed."""


class FinishedError(InputError):
    """A tuning of the same photos and settings is finished, so there is nothing to resume."""


@dataclass(frozen=True)
class Tuned:
    """Result of a tuning."""

    out: Path
    """The subject's file, or DreamBooth's folder."""
    folder: Path
    """Folder with the log, scores, strip of images and curve."""
    step: int
    """Optimizer steps of the kept result."""
    result: Result
    scores: tuple[Score, ...] = ()
    overfitted: bool = False
    """Whether a step after the kept one overfitted: the last text score fell far below the first."""


def output_path(out: str | Path | None, name: str, config: TuneConfig) -> Path:
    """Return the path of the result, a file or for DreamBooth a folder. Raises `InputError` if it can't be used."""
    whole_network = config.method == "dreambooth"
    path = as_path("out", out) if out is not None else Path(name if whole_network else f"{name}.safetensors")
    if not path.name:
        raise InputError(f"--out {path} is no name: use for example {name}{'' if whole_network else '.safetensors'}.")
    if not whole_network and path.suffix != ".safetensors":
        raise InputError(f"--out {path} must end in .safetensors, for example {path.with_suffix('.safetensors')}.")
    if whole_network and path.suffix == ".safetensors":
        raise InputError(f"--out {path} names a file, and DreamBooth writes a folder: use {path.with_suffix('')}.")
    if path.is_dir() and (not whole_network or any(path.iterdir())):
        raise InputError(f"{path} is a folder that exists already: choose another --out.")
    if whole_network and path.is_file():
        raise InputError(f"{path} is a file, and DreamBooth writes a folder: choose another --out.")
    if not (work_folder(path) / RUN_INFO).is_file():  # an earlier tuning's result may be replaced
        check_place(path)
    check_result(path)
    return path


def work_folder(path: Path) -> Path:
    """Return the folder of a result's log, scores and checkpoints."""
    return path.with_name(f"{path.name}.tuning")


def is_begun(path: Path) -> bool:
    """Return whether a result exists or has been begun, so that `resume` has something to continue."""
    return path_exists(path) or path_exists(work_folder(path))


def check_work_folder(work: Path, *, resume: bool) -> None:
    """Raise an error if the folder is not a tuning's, or holds an interrupted run that is not resumed."""
    if work.exists() and not (work / RUN_INFO).is_file() and not (work.is_dir() and not any(work.iterdir())):
        raise InputError(f"{work} exists already and isn't a tuning's folder: choose another --out.")
    if not resume and checkpointing.complete(work / CHECKPOINTS):
        raise CheckpointError(f"{work} holds a tuning that was interrupted: add --resume, or delete it.")


def run_info(
    base: str,
    photos: Sequence[Photo],
    category: str,
    name: str,
    config: TuneConfig,
    adapters: Sequence[LoraRef | EmbeddingRef],
    others: Sequence[Photo],
) -> dict[str, Any]:
    """Return the values that a resumed run must match, as read back from JSON.

    `base` is the model's fingerprint, `others` are the class images.
    """
    images, masks = _digest([photo.image for photo in photos]), _digest([photo.mask for photo in photos])
    subject: dict[str, Any] = {"photos": images, "masks": masks, "category": category, "name": name, "model": base}
    subject |= {"captions": [photo.caption for photo in photos], "class images": _digest([one.image for one in others])}
    subject |= {"LoRAs or embeddings": [(one.sha256, getattr(one, "weight", None)) for one in adapters]}
    return parse_json(json.dumps({**subject, **_settings(config)}))


def _digest(images: Sequence[Image.Image | None]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.size}".encode() + image.tobytes() if image is not None else b"none")
    return digest.hexdigest()


def _settings(config: TuneConfig) -> dict[str, Any]:
    """Return the settings that affect the result, by name."""
    settings = asdict(config)
    validation = settings.pop("validation")
    return {key: value for key, value in {**settings, **validation}.items() if key not in RESUMABLE}


def check_run_info(work: Path, info: Mapping[str, Any]) -> None:
    """Raise `InputError` if the interrupted run had other photos or settings."""
    earlier = read_json(work / RUN_INFO) if (work / RUN_INFO).is_file() else info
    if earlier.keys() != info.keys():
        raise InputError(f"{work} is of another version, which can't be resumed: delete it, or choose another --out.")
    if changed := [key for key in info if info[key] != earlier.get(key)]:
        raise InputError(
            f"{work} began with other {' and '.join(changed)}: --resume with the same, or choose another --out."
        )


def check_replaced(path: Path, work: Path, info: Mapping[str, Any], *, resume: bool) -> None:
    """Raise `InputError` if a finished result would be replaced by one of other photos or settings.

    With `resume`, raises `FinishedError` if it is of the same.
    """
    if not path.is_file() or checkpointing.complete(work / CHECKPOINTS):
        return
    earlier = read_json(work / RUN_INFO) if (work / RUN_INFO).is_file() else {}
    if changed := [key for key in info if info[key] != earlier.get(key)]:
        problem = f"was tuned with other {' and '.join(changed)}" if earlier else "exists already"
        raise InputError(
            f"{path} {problem}: choose another --name or --out, or delete it. Images made with it need it."
        )
    if resume:
        raise FinishedError(f"{path} is finished, so there is nothing to resume: leave out --resume.")


def keep_best(path: Path, work: Path, result: Result, validation: Validation | None) -> Tuned:
    """Move the best, or last, result to `path` and remove the files that only resuming needs."""
    step, kept = result.step, work / EXPORT
    scores: tuple[Score, ...] = ()
    overfitted = False
    if validation is not None:
        validation.report(path.stem)
        step, kept, scores = validation.best.step, validation.kept, tuple(validation.scores)
        last = validation.scores[-1]
        overfitted = last.step > step and validation.overfits(last)
    files = sorted(kept.iterdir())
    if (kept / "model_index.json").is_file():  # a whole network
        if path.is_dir():
            path.rmdir()  # it is empty; `move` would create a subfolder in it
        shutil.move(kept, path)
    elif files[0].name == "subject.safetensors":
        subject = read_subject(files[0])
        write_subject(replace(subject, metadata={**subject.metadata, "steps": step}), path)
    else:
        shutil.move(files[0], path)
    for rest in (CHECKPOINTS, EXPORT, BEST):
        shutil.rmtree(work / rest, ignore_errors=True)
    return Tuned(path, work, step, result, scores, overfitted)
