"""Build the objective of a run from its configuration: load or initialize the parts, then join them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from blip_diffusion.checkpoint.model_folder import Parts
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion, ReferenceConfig
from blip_diffusion.modules.placed_unet import is_placed
from blip_diffusion.modules.qformer import QFormerConfig
from blip_diffusion.training import initialization
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.objectives.autoencoder import Autoencoder
from blip_diffusion.training.objectives.consistency import Consistency
from blip_diffusion.training.objectives.control import StructureControl
from blip_diffusion.training.objectives.inpaint import Inpainting
from blip_diffusion.training.objectives.language import LanguageStage, blip2_of
from blip_diffusion.training.objectives.prior import Prior
from blip_diffusion.training.objectives.representation import Representation
from blip_diffusion.training.objectives.sentences import Sentences
from blip_diffusion.training.objectives.subject import SubjectRepresentation
from blip_diffusion.training.objectives.text_to_image import TextToImage
from blip_diffusion.training.objectives.upscale import Upscaling
from blip_diffusion.training.run_config import RunConfig
from blip_diffusion.training.shapes import SHAPES


@dataclass(frozen=True)
class BuildContext:
    """Inputs of the functions that build objectives."""

    config: RunConfig
    corpus: Sequence[str]  # sentences for new tokenizers
    pixels: torch.Tensor  # (B, 3, S, S) references, to calibrate a new image encoder
    categories: Sequence[str] = ()  # of the references


def autoencoder(material: BuildContext) -> Objective:
    """Build the objective of the autoencoder stage."""
    config = material.config
    parts = initialization.load_parts(config.model)
    if not config.autoencoder.train_encoder:  # the encoder is frozen, so it must be trained
        initialization.require_parts(parts, "vae")
    vae = initialization.init_vae(parts, config.model)
    distance = initialization.perceptual_distance(config.autoencoder.lpips) if config.autoencoder.perceptual else None
    return Autoencoder(vae, distance, config.autoencoder)


def text_to_image(material: BuildContext) -> Objective:
    """Build the objective of the text-to-image stage."""
    config = material.config
    model = initialization.init_model(
        initialization.load_parts(config.model), config.model, material.corpus, material.pixels
    )
    check_size(config, model)
    return TextToImage(model, initialization.noising_from(model.scheduler), config.text_to_image)


def representation(material: BuildContext) -> Objective:
    """Build the objective of stage 1 of BLIP-Diffusion."""
    config = material.config
    parts = initialization.load_parts(config.model)
    initialization.init_subject_encoder(parts, config.model, material.corpus, material.pixels)
    assert parts.subject_encoder is not None and parts.reference is not None
    if config.representation.image == "target":
        parts.reference = whole_images(parts.reference)
    grid = is_placed(SHAPES[config.model.preset].unet)
    heads = _heads(config, parts.subject_encoder.qformer.config, grid=grid)
    return Representation(parts.subject_encoder, parts.qformer_tokenizer, parts.reference, heads, config.representation)


def subject(material: BuildContext) -> Objective:
    """Build the objective of stage 2 of BLIP-Diffusion."""
    config = material.config
    parts = initialization.load_parts(config.model)
    trained = parts.subject_encoder is not None
    model = initialization.init_model(parts, config.model, material.corpus, material.pixels)
    check_size(config, model)
    noising = initialization.noising_from(model.scheduler)
    return SubjectRepresentation(model, noising, _reconstruction(config, model, trained=trained), config.subject)


def _reconstruction(config: RunConfig, model: BlipDiffusion, *, trained: bool) -> nn.Module | None:
    if not config.subject.reconstruction_weight:
        return None
    return initialization.init_reconstruction_head(
        model.subject_encoder.qformer.config,
        config.data.synthetic.object_crop_size,
        config.model.init_from,
        grid=bool(model.place_width),
        trained=trained,
    )


def _heads(config: RunConfig, shapes: QFormerConfig, *, grid: bool) -> nn.ModuleDict:
    size = config.data.synthetic.object_crop_size
    return initialization.init_heads(shapes, size, config.model.init_from, grid=grid)


def _trained(material: BuildContext) -> tuple[Parts, BlipDiffusion]:
    """Return the parts and the model of a stage that starts from a complete trained model."""
    config = material.config
    parts = initialization.load_parts(config.model)
    initialization.require_parts(parts, "subject_encoder", "text_encoder", "unet", "vae")
    model = initialization.init_model(parts, config.model, material.corpus, material.pixels)
    check_size(config, model)
    return parts, model


def consistency(material: BuildContext) -> Objective:
    """Build the objective of consistency distillation; the model becomes its teacher."""
    _, model = _trained(material)
    return Consistency(model, initialization.noising_from(model.scheduler), material.config.consistency)


def control(material: BuildContext) -> Objective:
    """Build the objective of structure control of a trained model."""
    config, (parts, model) = material.config, _trained(material)
    torch.manual_seed(config.model.seed)
    return StructureControl(
        model,
        initialization.noising_from(model.scheduler),
        config.control,
        t2i_adapters=parts.t2i_adapters,
        consistency_lora=parts.consistency_lora,
    )


def prior(material: BuildContext) -> Objective:
    """Build the objective of the prior, standardised by the subject tokens of some references."""
    config, (_, model) = material.config, _trained(material)
    torch.manual_seed(config.model.seed)
    noising = initialization.noising_from(model.scheduler)
    return Prior(model, noising, config.prior, material.pixels, material.categories)


def inpaint(material: BuildContext) -> Objective:
    """Build the objective of inpainting by concatenation, from a trained model."""
    config, (_, model) = material.config, _trained(material)
    return Inpainting(model, initialization.noising_from(model.scheduler), config.inpaint)


def upscale(material: BuildContext) -> Objective:
    """Build the objective of super-resolution; a U-Net of the preset is new unless a folder has one."""
    config = material.config
    parts = initialization.load_parts(config.model)
    initialization.require_parts(parts, "subject_encoder", "text_encoder")
    model = initialization.init_model(parts, config.model, material.corpus, material.pixels)
    check_size(config, model)
    return Upscaling(model, initialization.noising_from(model.scheduler), config.upscale)


def sentences(material: BuildContext) -> Objective:
    """Build the objective of a language model of the captions."""
    config = material.config
    parts = initialization.load_parts(config.model)
    model, tokenizer = initialization.init_language_model(parts, config.model, material.corpus)
    return Sentences(model, tokenizer, config.sentences)


def language(material: BuildContext) -> Objective:
    """Build the objective of stage 2 of BLIP-2, which begins from a copy of stage 1."""
    config = material.config
    parts = initialization.load_parts(config.model)
    initialization.init_subject_encoder(parts, config.model, material.corpus, material.pixels)
    encoder, reference = parts.subject_encoder, parts.reference
    assert encoder is not None and reference is not None
    width = encoder.qformer.config.width
    prefix, tokenizer = initialization.init_language(width, config.model, config.language.language_model)
    blip2 = blip2_of(
        encoder,
        prefix,
        reference=whole_images(reference) if config.language.image == "target" else reference,
        tokenizer=tokenizer,
        qformer_tokenizer=parts.qformer_tokenizer,
    )
    return LanguageStage(encoder, blip2, config.language)


def whole_images(reference: ReferenceConfig) -> ReferenceConfig:
    """Return how whole images are read, of which no subject is cut out: made square as BLIP-2 does."""
    return replace(reference, resize_mode="squash")


def check_size(config: RunConfig, model: BlipDiffusion) -> None:
    """Raise `ConfigError` if images are composed at another size than the model's, or, for pixels, a multiple of it."""
    own, size = model.image_size, config.data.synthetic.size
    if size != own and not (model.latents.factor == 1 and size % own == 0):
        raise ConfigError(f"data.synthetic.size is {size}, and this model generates {own} pixels: set it to {own}.")


OBJECTIVES: dict[str, Callable[[BuildContext], Objective]] = {
    "autoencoder": autoencoder,
    "text_to_image": text_to_image,
    "representation": representation,
    "subject": subject,
    "consistency": consistency,
    "control": control,
    "prior": prior,
    "inpaint": inpaint,
    "upscale": upscale,
    "sentences": sentences,
    "language": language,
}
