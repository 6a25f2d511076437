"""Tunes a model to one subject from a few photos: parts, photos, method, loop, file. The composition root of tuning."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import config as configuration
from blip_diffusion.checkpoint.model_folder import assemble, find_model, read_parts
from blip_diffusion.checkpoint.subject_file import (
    Subject,
    check_category,
    check_name,
    check_place,
    fingerprint,
    read_subject,
    thumbnail,
    write_subject,
)
from blip_diffusion.checkpoint.weights import read_json, write_json
from blip_diffusion.data.photos import Masks, Photo, PhotoBatches, Segmenter, Source, read_photos, squares
from blip_diffusion.devices import device_of, fastest_dtype
from blip_diffusion.errors import CheckpointError, ConfigError, InputError
from blip_diffusion.fileio import check_writable
from blip_diffusion.images import ResizeMode
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.sampling import sample_images
from blip_diffusion.training import checkpointing
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.objectives.dreambooth import DreamBooth, DreamBoothConfig
from blip_diffusion.training.objectives.few_shot import FewShot, FewShotConfig, Trainable
from blip_diffusion.training.objectives.textual_inversion import TextualInversion, TextualInversionConfig
from blip_diffusion.training.optim import OptimConfig
from blip_diffusion.training.personalize.early_stopping import (
    BEST,
    EncoderMetric,
    Evaluator,
    Score,
    Validation,
    ValidationConfig,
)
from blip_diffusion.training.trainer import (
    CHECKPOINTS,
    EXPORT,
    DivergedError,
    Hook,
    Result,
    TrainConfig,
    check_possible,
    fit,
)

TuneMethod = Literal["few-shot", "dreambooth", "dreambooth-lora", "textual-inversion"]
RATES: dict[str, tuple[float, float]] = {
    "embedding": (1e-3, 1e-2),
    "lora": (1e-4, 3e-3),
    "cross-attention": (1e-5, 3e-4),
    "unet": (5e-6, 1e-4),  # the first is LAVIS'; the paper has 5e-5
    "dreambooth": (5e-6, 1e-4),
    "dreambooth-lora": (1e-4, 3e-3),
    "textual-inversion": (5e-4, 1e-2),
}
"""The learning rate of each method, or of what few-shot tuning trains: at published widths, where they are what others
use, and for networks half as wide or narrower, where they come from trying on `mini`."""
PUBLISHED_WIDTH = 768
PRIOR_BATCH, PRIOR_SEED = 8, 10_000
SAVE_MINUTES = 5.0
"""What a machine that fails may cost, but for whole networks, whose checkpoints at published shapes take 14 GB."""
RUN_INFO = "begun.json"
"""What a tuning is of: by this, its folder is known to be one, and that a resumption is of the same."""
RESUMABLE = ("device", "gradient_checkpointing")
"""Settings that a resumption may change."""


@dataclass(frozen=True)
class TuneConfig:
    """What is learned and how."""

    method: TuneMethod = "few-shot"
    train: Trainable = "lora"
    """What few-shot tuning moves beside the embedding."""
    steps: int | None = None
    """Optimizer steps; `None` stops by itself, after `most` at the latest."""
    most: int = 200
    learning_rate: float | None = None
    """`None`: what is usual, see `RATES`."""
    batch_size: int = 3
    rank: int = 8
    """Of LoRAs."""
    token: str = "sks"
    """DreamBooth's rare word."""
    train_text_encoder: bool = False
    """DreamBooth's."""
    vectors: int = 1
    """Of Textual Inversion's word."""
    background: float = 0.1
    """What an error outside a photo's mask weighs, against 1 inside."""
    prior_images: int = 0
    """Pictures of the category's other members, which the untuned model draws, for prior preservation."""
    prior_weight: float = 1.0
    flip: bool = False
    """Mirror images as well; they spoil text and logos."""
    fit: ResizeMode = "crop"
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    mixed_precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    """Computes what the backward pass needs a second time instead of keeping it."""
    eight_bit: bool = False
    """Adam's moments in 8 bits, by bitsandbytes."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        for name in ("most", "batch_size", "rank", "vectors"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps is {self.steps}: use 1 or more, or auto.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, not {self.learning_rate}.")
        if self.prior_images < 0:
            raise ConfigError(f"prior_images must not be negative, but is {self.prior_images}.")
        if self.prior_images and self.method == "textual-inversion":
            raise ConfigError(
                "prior_images say nothing to textual-inversion, which leaves the category as it is: use 0."
            )
        if self.prior_images and self.method == "few-shot" and self.train == "embedding":
            raise ConfigError(
                "prior_images say nothing to an embedding alone, which leaves the category as it is: use 0."
            )

    @property
    def whole_network(self) -> bool:
        """Whether all of the U-Net moves."""
        return self.method == "dreambooth" or (self.method == "few-shot" and self.train == "unet")

    def resolved(self, width: int) -> "TuneConfig":
        """With the learning rate that is usual for text states of that width, where none is set."""
        usual = RATES[self.train if self.method == "few-shot" else self.method]
        rate = self.learning_rate or usual[0 if width >= PUBLISHED_WIDTH else 1]
        return replace(self, learning_rate=rate)


@dataclass(frozen=True)
class Tuned:
    """How a tuning ended."""

    out: Path
    """The subject's file; DreamBooth's folder."""
    folder: Path
    """Log, scores, strip of pictures and curve."""
    step: int
    """How many steps what was kept has taken."""
    result: Result
    scores: tuple[Score, ...] = ()
    overfitted: bool = False
    """Whether the last score, of a later step than the kept one, ignored its prompts."""


def tune(
    photos: Sequence[Source],
    *,
    category: str,
    name: str,
    out: str | Path | None = None,
    model: str | Path = "mini",
    config: TuneConfig | None = None,
    masks: Masks = "auto",
    segmenter: Segmenter | None = None,
    evaluator: Evaluator | None = None,
    resume: bool = False,
) -> Tuned:
    """Learns the subject of one to thirty photos, and writes its file, `{name}.safetensors` where `out` names no other.

    `photos` are files, folders or pictures. Beside the file, a folder `{out}.tuning` keeps the log and, where it stops
    by itself, the scores, a strip of pictures and a curve; `resume` goes on from there after an interruption, with the
    same photos, category, name, model and settings. `evaluator` judges the validation pictures instead of the model's
    own encoders. Raises `InputError` or `ConfigError` for what can't be used, before anything is trained.
    """
    config = config or TuneConfig()
    check_category(category)
    check_name(name)
    path = _place(out, name, config)
    work = _work(path)
    _check_work(work, resume=resume)
    shown = read_photos(photos, masks=masks, segmenter=segmenter)
    folder = find_model(model)
    loaded = assemble(read_parts(folder, dtype=_dtype(config)), folder).to(device_of(config.device))
    begun = _begun(loaded, shown, category, name, config)
    if resume:
        _check_begun(work, begun)
    check_possible(_training(config.resolved(_width(loaded))))
    job = prepare(loaded, shown, category, name, config, model_name=str(model))
    if not resume:
        shutil.rmtree(work, ignore_errors=True)  # of an earlier tuning, now that nothing can be wrong with this one
    write_json(work / RUN_INFO, begun)
    validation = None
    if config.steps is None:
        judge = evaluator or EncoderMetric(loaded, job.pixels, job.masks, category, config.validation)
        validation = Validation(judge, config.validation, work)
        newest = checkpointing.latest(work / CHECKPOINTS) if resume else None
        validation.begin(job.objective, after=checkpointing.verify(newest).step if newest else 0)
    try:
        result = run(job, work, validation, resume=resume)
    except DivergedError as error:
        if validation is None:
            raise
        warnings.warn(f"{error} What was best before is kept.", stacklevel=2)
        result = error.result
    if result.stopped == "signal":
        return Tuned(path, work, result.step, result)
    return _keep(path, work, result, validation)


@dataclass(frozen=True, eq=False)
class TuningJob:
    """What is to be learned, by what."""

    config: TuneConfig  # nothing in it is left open
    objective: Objective
    batches: PhotoBatches
    pixels: Tensor  # (P, 3, S, S) of the photos
    masks: Tensor  # (P, 1, S, S)


def prepare(
    model: BlipDiffusion, photos: Sequence[Photo], category: str, name: str, config: TuneConfig, *, model_name: str = ""
) -> TuningJob:
    """The method that learns these photos, and its batches. The model becomes its part."""
    config = config.resolved(_width(model))
    model.requires_grad_(False)
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    pixels, cut = squares(photos, int(model.unet.config.sample_size) * model.latents.factor, config.fit)
    if config.flip:
        pixels, cut = torch.cat([pixels, pixels.flip(-1)]), torch.cat([cut, cut.flip(-1)])
    latents = _latents(model, pixels)
    prior = _prior(model, category, config) if config.prior_images else None
    batches = PhotoBatches(latents, cut, batch_size=config.batch_size, seed=config.seed, prior=prior)
    objective = _objective(model, photos, category, name, config, model_name)
    return TuningJob(config, objective, batches, pixels[: len(photos)], cut[: len(photos)])


def run(job: TuningJob, folder: Path, validation: Hook | None = None, *, resume: bool = False) -> Result:
    """The loop, as tuning wants it."""
    hooks = [validation] if validation is not None else []
    text = configuration.to_toml(job.config)
    train = _training(job.config)
    return fit(job.objective, job.batches, train, folder=folder, resume=resume, hooks=hooks, config_text=text)


def _training(config: TuneConfig) -> TrainConfig:
    """No average, one checkpoint, and in long tunings one on the way."""
    steps = config.steps or config.most
    return TrainConfig(
        steps=steps,
        seed=config.seed,
        device=config.device,
        mixed_precision=config.mixed_precision,
        ema_decay=0.0,
        save_every=steps,
        save_minutes=None if config.whole_network else SAVE_MINUTES,
        sample_every=config.validation.every,
        keep_last=1,
        prefetch=0,
        optim=OptimConfig(lr=config.learning_rate or 0.0, eight_bit=config.eight_bit),
    )


# ---------------------------------------------------------------------------------------------------------- the method


def _objective(
    model: BlipDiffusion, photos: Sequence[Photo], category: str, name: str, config: TuneConfig, model_name: str
) -> Objective:
    torch.manual_seed(config.seed)  # of a LoRA's first matrices
    noising = noising_from(model.scheduler)
    match config.method:
        case "few-shot":
            start = initial_subject(model, photos, category, name, config, model_name)
            few = FewShotConfig(
                config.train, config.rank, background=config.background, prior_weight=config.prior_weight
            )
            return FewShot(model, noising, start, few)
        case "dreambooth" | "dreambooth-lora":
            dream = DreamBoothConfig(
                config.token,
                config.method == "dreambooth-lora",
                config.rank,
                config.train_text_encoder,
                background=config.background,
                prior_weight=config.prior_weight,
            )
            return DreamBooth(model, noising, category, dream)
        case "textual-inversion":
            inversion = TextualInversionConfig(config.vectors, config.background)
            return TextualInversion(model, noising, name, category, inversion)


@torch.no_grad()
def initial_subject(
    model: BlipDiffusion, photos: Sequence[Photo], category: str, name: str, config: TuneConfig, model_name: str = ""
) -> Subject:
    """The subject before any tuning: the mean of its photos' tokens."""
    pixels, _ = squares(photos, model.reference.size, config.fit)
    tokens = model.subject_tokens(pixels.to(model.subject_encoder.device), [category] * len(pixels))
    details = {"model": model_name, "photos": len(photos), "train": config.train, "learning_rate": config.learning_rate}
    details |= {"batch_size": config.batch_size, "seed": config.seed}
    return Subject(
        name,
        category,
        tokens.float().mean(dim=0, keepdim=True).cpu(),
        fingerprint(model.unet, model.text_encoder),
        thumbnail=thumbnail(photos[0].picture),
        details=details,
    )


@torch.no_grad()
def _latents(model: BlipDiffusion, pixels: Tensor) -> Tensor:
    """Encoded once: the autoencoder rests while tuning."""
    device = next(model.vae.parameters()).device
    return torch.cat([model.latents.encode(one[None].to(device)).float().cpu() for one in pixels])


def _prior(model: BlipDiffusion, category: str, config: TuneConfig) -> Tensor:
    """Latents (K, C, H, W) of what the untuned model draws for the category."""
    states = model.text_states([subject_prompt("", category)]).detach()
    seeds = list(range(PRIOR_SEED, PRIOR_SEED + config.prior_images))
    some = [seeds[start : start + PRIOR_BATCH] for start in range(0, len(seeds), PRIOR_BATCH)]
    return torch.cat([sample_images(model, states.expand(len(s), -1, -1), s, decoded=False).cpu() for s in some])


# ---------------------------------------------------------------------------------------------------------- the files


def _place(out: str | Path | None, name: str, config: TuneConfig) -> Path:
    """Where the result goes: a file, or for a whole network a folder."""
    whole_network = config.method == "dreambooth"
    path = Path(out) if out is not None else Path(name if whole_network else f"{name}.safetensors")
    if not whole_network and path.suffix != ".safetensors":
        raise InputError(f"--out {path} should end in .safetensors, as {path.with_suffix('.safetensors')}.")
    if whole_network and path.suffix == ".safetensors":
        raise InputError(f"--out {path} names a file, and DreamBooth writes a folder: say {path.with_suffix('')}.")
    if path.is_dir() and (not whole_network or any(path.iterdir())):
        raise InputError(f"{path} is a folder that is there already: choose another --out.")
    if whole_network and path.is_file():
        raise InputError(f"{path} is a file, and DreamBooth writes a folder: choose another --out.")
    if not (_work(path) / RUN_INFO).is_file():  # an earlier tuning's result is
        check_place(path)
    check_writable(path.parent)
    return path


def _work(path: Path) -> Path:
    """The folder beside a result: log, scores, checkpoints."""
    return path.with_name(f"{path.name}.tuning")


def _check_work(work: Path, *, resume: bool) -> None:
    """An earlier tuning's folder may be made room in, unless it was interrupted; no one else's may."""
    if work.exists() and not (work / RUN_INFO).is_file() and not (work.is_dir() and not any(work.iterdir())):
        raise InputError(f"{work} is there already and is no tuning's folder: choose another --out.")
    if not resume and checkpointing.complete(work / CHECKPOINTS):
        raise CheckpointError(f"{work} holds a tuning that was interrupted: say --resume, or delete it.")


def _begun(
    model: BlipDiffusion, photos: Sequence[Photo], category: str, name: str, config: TuneConfig
) -> dict[str, Any]:
    """What a tuning can't change on its way, as JSON reads it back."""
    model_of = fingerprint(model.unet, model.text_encoder)
    pictures, masks = _digest([photo.picture for photo in photos]), _digest([photo.mask for photo in photos])
    subject = {"photos": pictures, "masks": masks, "category": category, "name": name, "model": model_of}
    return json.loads(json.dumps({**subject, **_settings(config.resolved(_width(model)))}))


def _digest(pictures: Sequence[Image.Image | None]) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.size}".encode() + picture.tobytes() if picture is not None else b"none")
    return digest.hexdigest()


def _settings(config: TuneConfig) -> dict[str, Any]:
    """All that says what is learned, by name; not where it is computed, and what is kept in memory meanwhile."""
    settings = asdict(config)
    judging = settings.pop("validation")
    return {key: value for key, value in {**settings, **judging}.items() if key not in RESUMABLE}


def _check_begun(work: Path, begun: Mapping[str, Any]) -> None:
    """Raises `InputError` where a tuning began with something else."""
    earlier = read_json(work / RUN_INFO) if (work / RUN_INFO).is_file() else begun
    if earlier.keys() != begun.keys():
        raise InputError(f"{work} is of another version, which can't be resumed: delete it, or choose another --out.")
    if changed := [what for what in begun if begun[what] != earlier.get(what)]:
        raise InputError(
            f"{work} began with other {' and '.join(changed)}: --resume with the same, or choose another --out."
        )


def _keep(path: Path, work: Path, result: Result, validation: Validation | None) -> Tuned:
    """Puts what was best, or last, in its place, and takes away what only a resumption needs."""
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
            path.rmdir()  # an empty one, into which `move` would put a folder of its own
        shutil.move(kept, path)
    elif files[0].name == "subject.safetensors":
        subject = read_subject(files[0])
        write_subject(replace(subject, details={**subject.details, "steps": step}), path)
    else:
        shutil.move(files[0], path)
    for rest in (CHECKPOINTS, EXPORT, BEST):
        shutil.rmtree(work / rest, ignore_errors=True)
    return Tuned(path, work, step, result, scores, overfitted)


def _width(model: BlipDiffusion) -> int:
    """Of text states."""
    return int(model.text_encoder.config.hidden_size)


def _dtype(config: TuneConfig) -> torch.dtype:
    """Of what is frozen."""
    if config.mixed_precision == "auto":
        return fastest_dtype(device_of(config.device))
    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
