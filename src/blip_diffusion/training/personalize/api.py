"""Tune a model to one subject from a few photos: load parts and photos, train, write the file."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_diffusion import config as configuration
from blip_diffusion.argument_checks import flag, function, instance, listed
from blip_diffusion.checkpoint.adapter_refs import EmbeddingRef, LoraRef
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.merge import merge_adapters
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.checkpoint.subject_file import (
    Subject,
    check_category,
    check_name,
    fingerprint,
    thumbnail,
)
from blip_diffusion.checkpoint.weights import write_json
from blip_diffusion.data.captioned.rows import scene_of
from blip_diffusion.data.photos import (
    Masks,
    Photo,
    PhotoBatches,
    Segmenter,
    Source,
    read_class_images,
    read_photos,
    squares,
)
from blip_diffusion.devices import device_of, fastest_dtype
from blip_diffusion.escaping import warn
from blip_diffusion.fileio import as_path, clear, locked, remove_partials
from blip_diffusion.framing import FILL, SIDE
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training import checkpointing
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.objectives.dreambooth import DreamBooth, DreamBoothConfig
from blip_diffusion.training.objectives.few_shot import FewShot, FewShotConfig
from blip_diffusion.training.objectives.textual_inversion import TextualInversion, TextualInversionConfig
from blip_diffusion.training.optim import OptimConfig
from blip_diffusion.training.personalize.artifacts import (
    RUN_INFO,
    Tuned,
    check_replaced,
    check_run_info,
    check_work_folder,
    keep_best,
    output_path,
    run_info,
    work_folder,
)
from blip_diffusion.training.personalize.config import TuneConfig, check_mergeable, text_width
from blip_diffusion.training.personalize.early_stopping import Evaluator, Validation
from blip_diffusion.training.personalize.encoder_metric import EncoderMetric
from blip_diffusion.training.personalize.training_images import (
    encode_photos,
    sample_prior,
    square_photos,
    with_predicted_masks,
)
from blip_diffusion.training.run import CHECKPOINTS, DTYPES, DivergedError, Result, check_possible
from blip_diffusion.training.trainer import Hook, fit

SAVE_MINUTES = 5.0
"""Minutes between checkpoints, except for whole networks, whose checkpoints take 14 GB at published shapes."""


def tune(
    photos: Sequence[Source],
    *,
    category: str,
    name: str,
    out: str | Path | None = None,
    model: str | Path = "mini",
    config: TuneConfig | None = None,
    loras: Sequence[LoraRef] = (),
    embeddings: Sequence[EmbeddingRef] = (),
    class_images: Path | None = None,
    masks: Masks = "auto",
    segmenter: Segmenter | None = None,
    evaluator: Evaluator | None = None,
    resume: bool = False,
) -> Tuned:
    """Personalize a model for the subject of one to thirty photos and write its file.

    Next to the result, a folder `{out}.tuning` keeps the log and, with early stopping, the scores, a strip of samples
    and a curve.

    Args:
        photos: Image files, folders of them, or PIL images. A caption in a .txt file beside an image or in the folder's
            `metadata.jsonl` describes what else the image shows.
        category: The subject's category in a word or two, such as "dog".
        name: The subject's name: letters, digits, `-` and `_`.
        out: The result's path; default `{name}.safetensors`, or the folder `{name}` for `method="dreambooth"`.
        model: `"mini"`, a model's folder, or a hub id.
        config: The settings; see `TuneConfig`.
        loras: LoRAs that are merged into the model while it is tuned; use the result together with them.
        embeddings: Textual inversions, whose words may occur in the category and the prompts.
        class_images: A folder of other images of the category, for prior preservation; by default,
            `config.num_class_images` are sampled from the model.
        masks: `"auto"` finds the subject, `"none"` weighs all pixels equally, or one mask per photo.
        segmenter: Predicts masks for `masks="auto"`, before the model's subject finder does; the command uses
            img-focus if it is installed.
        evaluator: Scores samples for early stopping; default: the model's own image encoder.
        resume: Continue an interrupted run with the same photos, category, name, model and settings; start with a
            warning if it has no checkpoint.

    Returns:
        The result's path, its step, and the scores.

    Raises:
        InputError: If the photos, names or paths cannot be used, or a result of other photos or settings exists.
        ConfigError: If the settings cannot be used.
        CheckpointError: If an interrupted run exists and `resume` is false, or the model cannot be loaded.
        DivergedError: If a loss is not finite and there is no validation whose best result can be kept.

    Example:
        >>> tuned = tune(["photos/"], category="dog", name="rex", config=TuneConfig(steps=40))
        >>> tuned.out
        PosixPath('rex.safetensors')
    """
    config = TuneConfig() if config is None else instance("config", config, TuneConfig)
    check_category(category)
    check_name(name)
    _check_arguments(loras, embeddings, segmenter, evaluator, resume)
    check_mergeable(config, loras)
    path = output_path(out, name, config)
    work = work_folder(path)
    check_work_folder(work, resume=resume)
    loaded_photos = read_photos(photos, masks=masks, segmenter=segmenter)
    others = read_class_images(as_path("class_images", class_images)) if class_images is not None else []
    config = replace(config, num_class_images=len(others)) if others else config
    folder = find_model(model)
    loaded = assemble(read_parts(folder, dtype=_dtype(config)), folder).to(device_of(config.device))
    if masks == "auto":
        loaded_photos = with_predicted_masks(loaded, loaded_photos)
    base = fingerprint(loaded.unet, loaded.text_encoder)  # of the base model, without LoRAs
    merge_adapters(loaded, loras, embeddings)
    settings = config.resolved(text_width(loaded))
    info = run_info(base, loaded_photos, category, name, settings, [*loras, *embeddings], others)
    check_replaced(path, work, info, resume=resume)
    if resume:
        check_run_info(work, info)
    check_possible(_training(settings))
    job = prepare(loaded, loaded_photos, category, name, config, model_name=str(model), base=base, others=others)
    with locked(work):
        for place, file in (work, "*"), (path.parent, glob.escape(path.name)):
            remove_partials(place, file)
        checkpointing.recover(work / CHECKPOINTS)
        if not resume:
            clear(work)  # of an earlier run, after all checks of this one
        write_json(work / RUN_INFO, info)
        return _run_to_file(job, loaded, category, path, work, evaluator, resume=resume)


def _check_arguments(loras: Any, embeddings: Any, segmenter: Any, evaluator: Any, resume: Any) -> None:
    """Raise `InputError` for arguments of wrong types that are used only later."""
    flag("resume", resume)
    function("segmenter", segmenter, "an image")
    function("evaluator", evaluator, "samples")
    for lora in listed("loras", loras, "LoraRef"):
        instance("a LoRA", lora, LoraRef)
    for embedding in listed("embeddings", embeddings, "EmbeddingRef"):
        instance("an embedding", embedding, EmbeddingRef)


def _run_to_file(
    job: "TuningJob",
    model: BlipDiffusion,
    category: str,
    path: Path,
    work: Path,
    evaluator: Evaluator | None,
    *,
    resume: bool,
) -> Tuned:
    """Train, and move the best or last result to `path`."""
    validation, config = None, job.config
    if config.steps is None:
        metric = evaluator or EncoderMetric(model, job.pixels, job.masks, category, config.validation)
        validation = Validation(metric, config.validation, work)
        newest = checkpointing.latest(work / CHECKPOINTS) if resume else None
        validation.begin(job.objective, after=checkpointing.verify(newest).step if newest else 0)
    try:
        result = run_job(job, work, validation, resume=resume)
    except DivergedError as error:
        if validation is None:
            raise
        warn(f"{error} The best earlier result is kept.", stacklevel=3)
        result = error.result
    if result.stopped == "signal":
        return Tuned(path, work, result.step, result)
    return keep_best(path, work, result, validation)


@dataclass(frozen=True, eq=False)
class TuningJob:
    """The objective of a tuning and its data."""

    config: TuneConfig  # resolved
    objective: Objective
    batches: PhotoBatches
    pixels: Tensor  # (P, 3, S, S) of the photos
    masks: Tensor  # (P, 1, S, S)


def prepare(
    model: BlipDiffusion,
    photos: Sequence[Photo],
    category: str,
    name: str,
    config: TuneConfig,
    *,
    model_name: str = "",
    base: str | None = None,
    others: Sequence[Photo] = (),
) -> TuningJob:
    """Build the objective of these photos, which owns the model, and its batches.

    `base` is the fingerprint of the model before LoRAs were merged; default: the fingerprint of `model`. `others` are
    the class images.
    """
    config = config.resolved(text_width(model))
    model.requires_grad_(False)
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    size = model.image_size
    pixels, cut = square_photos(model, photos, size, config.resize_mode, fill=SIDE[""])
    if config.flip:
        pixels, cut = torch.cat([pixels, pixels.flip(-1)]), torch.cat([cut, cut.flip(-1)])
    latents = encode_photos(model, pixels)
    prior: Tensor | None = None
    if others:
        prior = encode_photos(model, squares(others, size)[0])
    elif config.num_class_images:
        prior = sample_prior(model, category, config)
    scenes = [scene_of(photo.caption, category) for photo in photos] * (len(latents) // len(photos))
    batches = PhotoBatches(latents, cut, batch_size=config.batch_size, seed=config.seed, prior=prior, scenes=scenes)
    objective = _objective(model, photos, category, name, config, model_name, base)
    return TuningJob(config, objective, batches, pixels[: len(photos)], cut[: len(photos)])


def run_job(job: TuningJob, folder: Path, validation: Hook | None = None, *, resume: bool = False) -> Result:
    """Run the training loop of a personalization job."""
    hooks = [validation] if validation is not None else []
    text = configuration.to_toml(job.config)
    train = _training(job.config)
    return fit(job.objective, job.batches, train, folder=folder, resume=resume, hooks=hooks, config_text=text)


def _training(config: TuneConfig) -> TrainConfig:
    """Return settings without a weight average, with a checkpoint at the end and every `SAVE_MINUTES`."""
    steps = config.steps or config.max_steps
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
    model: BlipDiffusion,
    photos: Sequence[Photo],
    category: str,
    name: str,
    config: TuneConfig,
    model_name: str,
    base: str | None,
) -> Objective:
    torch.manual_seed(config.seed)  # for the initial values of a LoRA
    noising = noising_from(model.scheduler)
    match config.method:
        case "few-shot":
            initial = initial_subject(model, photos, category, name, config, model_name, base)
            few = FewShotConfig(
                config.trainable,
                config.rank,
                background_weight=config.background_weight,
                prior_weight=config.prior_weight,
            )
            return FewShot(model, noising, initial, few)
        case "dreambooth" | "dreambooth-lora":
            dream = DreamBoothConfig(
                config.token,
                config.method == "dreambooth-lora",
                config.rank,
                config.train_text_encoder,
                background_weight=config.background_weight,
                prior_weight=config.prior_weight,
            )
            return DreamBooth(model, noising, category, dream)
        case "textual-inversion":
            inversion = TextualInversionConfig(config.num_vectors, config.background_weight)
            return TextualInversion(model, noising, name, category, inversion)


@torch.no_grad()
def initial_subject(
    model: BlipDiffusion,
    photos: Sequence[Photo],
    category: str,
    name: str,
    config: TuneConfig,
    model_name: str = "",
    base: str | None = None,
) -> Subject:
    """Return the subject before fine-tuning: the mean of its photos' tokens."""
    pixels, _ = square_photos(model, photos, model.reference.size, config.resize_mode, fill=FILL)
    tokens = model.subject_tokens(pixels.to(model.subject_encoder.device), [category] * len(pixels))
    metadata = {
        "model": model_name,
        "photos": len(photos),
        "train": config.trainable,
        "learning_rate": config.learning_rate,
    }
    metadata |= {"batch_size": config.batch_size, "seed": config.seed}
    return Subject(
        name,
        category,
        tokens.float().mean(dim=0, keepdim=True).cpu(),
        base or fingerprint(model.unet, model.text_encoder),
        thumbnail=thumbnail(photos[0].image),
        metadata=metadata,
    )


# ---------------------------------------------------------------------------------------------------------- the files


def _dtype(config: TuneConfig) -> torch.dtype:
    """Return the data type of frozen parts."""
    if config.mixed_precision == "auto":
        return fastest_dtype(device_of(config.device))
    return DTYPES[config.mixed_precision]
