"""Export to plain diffusers: a Stable Diffusion folder, and a LoRA file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import diffusers
from torch import Tensor

from blip_diffusion.checkpoint.components import save_diffusers, save_text_encoder
from blip_diffusion.checkpoint.lora import adapter_header
from blip_diffusion.checkpoint.tokenizers import save_tokenizer
from blip_diffusion.checkpoint.weights import read_json, save_state, write_json
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.protocols import Scheduler


def save_stable_diffusion(model: BlipDiffusion, folder: Path) -> None:
    """Write the text-to-image parts as a `StableDiffusionPipeline`."""
    save_diffusers(model.unet, folder / "unet")
    save_diffusers(model.vae, folder / "vae")
    save_text_encoder(model.text_encoder, folder / "text_encoder")
    save_tokenizer(model.tokenizer, folder / "tokenizer")
    _save_scheduler(model.scheduler, folder / "scheduler")
    absent = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), (None, None))
    parts = {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "scheduler": ("diffusers", type(model.scheduler).__name__),
    }
    names = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
    write_json(folder / "model_index.json", {**names, **parts, **absent, "requires_safety_checker": False})


def advice(missing: Sequence[str]) -> str:
    """Return what to do with a Stable Diffusion folder, which lacks the subject encoder; nothing for others."""
    if not {"subject_encoder", "reference"} <= set(missing) <= {"subject_encoder", "reference", "qformer_tokenizer"}:
        return ""
    return (
        " It is a Stable Diffusion model, as tune --method dreambooth writes: use diffusers' StableDiffusionPipeline, "
        "or put its U-Net into a copy of the model that was tuned (blip-diffusion convert MODEL --unet FOLDER --out "
        "COPY) and generate with --model COPY."
    )


def _save_scheduler(scheduler: Scheduler, folder: Path) -> None:
    """Write a scheduler; trailing timesteps ignore the offset that Stable Diffusion's pipelines require, so add it."""
    scheduler.save_pretrained(folder)
    table = read_json(folder / "scheduler_config.json")
    if table.get("timestep_spacing") == "trailing":
        write_json(folder / "scheduler_config.json", table | {"steps_offset": 1})


def save_lora(path: Path, unet: Mapping[str, Tensor], text_encoder: Mapping[str, Tensor], *, rank: int) -> None:
    """Write a LoRA file for `load_lora_weights` from matrices by their PEFT names in each network."""
    parts = {"unet": unet, "text_encoder": text_encoder}
    tensors = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    save_state(tensors, path, header=adapter_header(parts, rank=rank, alpha=rank))
