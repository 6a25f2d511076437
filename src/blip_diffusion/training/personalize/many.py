"""Tune many subjects, each to a file: in this process one after another, or on the actors of a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from blip_diffusion.argument_checks import choice, function, instance, listed
from blip_diffusion.checkpoint.adapter_refs import EmbeddingRef, LoraRef
from blip_diffusion.checkpoint.subject_file import check_category, check_name
from blip_diffusion.config import check_types
from blip_diffusion.data.photos import IMAGE_SUFFIXES
from blip_diffusion.data.segmentation import saliency
from blip_diffusion.errors import BlipDiffusionError, InputError
from blip_diffusion.fileio import as_path, check_writable, path_exists
from blip_diffusion.ray_pool import Backend, worker_pool
from blip_diffusion.training.personalize.api import tune
from blip_diffusion.training.personalize.artifacts import FinishedError, is_begun
from blip_diffusion.training.personalize.config import TuneConfig


@dataclass(frozen=True)
class SubjectPhotos:
    """The photos of one subject: the folder `CATEGORY/NAME`."""

    folder: Path
    name: str
    category: str


@dataclass(frozen=True)
class Outcome:
    """What became of one subject."""

    name: str
    out: Path
    state: Literal["tuned", "kept", "stopped", "failed"]
    """`kept`: an earlier run had finished it; `stopped`: by a signal, so that the next run continues it."""
    step: int = 0
    problem: str = ""


@dataclass(frozen=True)
class ManyConfig:
    """What all subjects share; see `tune`."""

    out: Path
    model: str = "mini"
    config: TuneConfig = field(default_factory=TuneConfig)
    loras: tuple[LoraRef, ...] = ()
    embeddings: tuple[EmbeddingRef, ...] = ()
    masks: Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        check_types(self, InputError)


def subjects_in(folder: Path) -> list[SubjectPhotos]:
    """Return the subjects of a folder whose subfolders are `CATEGORY/NAME/`, sorted.

    Raises:
        InputError: If there are none, a name occurs twice, a name or category can't be used, or a folder has no images.
    """
    if not path_exists(folder := as_path("folder", folder), Path.is_dir):
        raise InputError(f"There is no folder of subjects at {folder}: check the path.")
    subjects = [
        SubjectPhotos(photos.resolve(), photos.name, category.name)
        for category in _subfolders(folder)
        for photos in _subfolders(category)
    ]
    if not subjects:
        raise InputError(f"There are no subjects in {folder}: put photos into folders such as {folder}/dog/rex.")
    for number, subject in enumerate(subjects):
        check_category(subject.category)
        check_name(subject.name)
        if subject.name in [other.name for other in subjects[:number]]:
            raise InputError(f"Two subjects in {folder} are named {subject.name}: rename one of their folders.")
        if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in subject.folder.iterdir()):
            raise InputError(f"There are no images in {subject.folder}: put PNG, JPEG or WebP files there.")
    return subjects


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def tune_many(
    subjects: Sequence[SubjectPhotos],
    settings: ManyConfig,
    *,
    backend: Backend = "local",
    actors: int | None = None,
    on_ended: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Tune a model to each of many subjects, as `tune` does, and write a file `NAME.safetensors` for each.

    The same call continues an interrupted one: finished subjects are kept, and the others continue at their last
    checkpoint. With Ray, the subjects of an actor that dies are continued by its successor. The files are equal to
    those of `tune` with as many threads. An error of one subject does not end the others.

    Args:
        subjects: The subjects, with different names.
        settings: What they share. With Ray, all nodes share the folders of photos and results.
        backend: "local", this process, or "ray", the actors of a cluster; see `ray_pool.actor_pool`.
        actors: Number of actors.
        on_ended: Called after each subject, in order.

    Returns:
        What became of each, in order, up to the first that a signal stopped.

    Raises:
        InputError: If nothing can be written, or the settings can't be used for a file.
    """
    choice("backend", backend, get_args(Backend))
    function("on_ended", on_ended, "an outcome", optional=False)
    for subject in listed("subjects", subjects, "SubjectPhotos"):
        instance("a subject", subject, SubjectPhotos)
    check_writable(instance("settings", settings, ManyConfig).out)
    if settings.config.method == "dreambooth":
        raise InputError("dreambooth writes a folder of some GB for each subject: choose another method.")
    outcomes: list[Outcome] = []
    with worker_pool(partial(_tuner, settings), backend=backend, actors=actors) as tune_all:
        for outcome in tune_all(subjects):
            outcomes.append(outcome)
            on_ended(outcome)
            if outcome.state == "stopped":
                break
    return outcomes


@contextmanager
def _tuner(settings: ManyConfig) -> Iterator[Callable[[SubjectPhotos], Outcome]]:
    """Context manager: the function tunes one subject. It also runs in the processes of Ray."""
    segmenter = saliency() if settings.masks == "auto" else None

    def tune_one(subject: SubjectPhotos) -> Outcome:
        out = settings.out / f"{subject.name}.safetensors"
        try:
            tuned = tune(
                [subject.folder],
                category=subject.category,
                name=subject.name,
                out=out,
                model=settings.model,
                config=settings.config,
                loras=settings.loras,
                embeddings=settings.embeddings,
                masks=settings.masks,
                segmenter=segmenter,
                resume=is_begun(out),
            )
        except FinishedError:
            return Outcome(subject.name, out, "kept")
        except BlipDiffusionError as error:
            return Outcome(subject.name, out, "failed", problem=str(error))
        return Outcome(subject.name, out, "stopped" if tuned.result.stopped == "signal" else "tuned", tuned.step)

    yield tune_one
