"""Models of special kinds, made of the tiny one, with untrained weights."""

from pathlib import Path

import torch

from blip_diffusion.checkpoint.components import save_heads
from blip_diffusion.checkpoint.language import save_language
from blip_diffusion.checkpoint.model_folder import save_subject_model
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.heads import ContrastiveHead, MatchingHead
from blip_diffusion.modules.language import LanguagePrefix, build_language_model
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.prior import Prior, PriorConfig
from blip_diffusion.training.shapes import LANGUAGE_MODELS


def save_blip2(model: BlipDiffusion, folder: Path) -> Path:
    """Write a model's subject encoder with a language part and heads: one that captions and searches."""
    encoder, tokenizer = model.subject_encoder, model.tokenizer
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    language = build_language_model(LANGUAGE_MODELS["tiny"], bos=tokenizer.bos_token_id, eos=end, pad=end)
    with torch.no_grad():
        for parameter in language.parameters():
            parameter.mul_(4)  # large enough for a prompt to matter
    save_subject_model(encoder, model.qformer_tokenizer, model.reference, folder)
    save_language(LanguagePrefix(32, language), tokenizer, folder / "language")
    save_heads({"contrastive": ContrastiveHead(32), "matching": MatchingHead(32)}, folder)
    return folder


def save_with_prior(model: BlipDiffusion, batch: SubjectBatch, folder: Path) -> Path:
    """Write a model with a prior of subjects: one that invents."""
    torch.manual_seed(0)
    config = PriorConfig(heads=2, layers=1)
    Prior(model, noising_from(model.scheduler), config, batch["reference"], batch["category"]).export(folder)
    return folder
