"""The models of the benchmark: random weights in the published layout, which both sides load from the same files.

`published` has the shapes of the published model. `mini` has those of the shipped model, except for what the peer
doesn't support: its image encoder is CLIP's, it has 16 queries, which are not placed, and a larger vocabulary.
"""

import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from blip_diffusion.checkpoint.diffusers_export import save_lora
from blip_diffusion.checkpoint.lavis import clip_tokenizer, published_scheduler
from blip_diffusion.checkpoint.locate import ASSETS
from blip_diffusion.checkpoint.lora import ALL_UNET_LAYERS
from blip_diffusion.checkpoint.model_folder import CONSISTENCY_LORA, save_model
from blip_diffusion.checkpoint.tokenizers import bert_tokenizer
from blip_diffusion.model import BlipDiffusion, ModelConfig, ReferenceConfig, build_subject_encoder, build_text_encoder
from blip_diffusion.modules.image_encoder import ImageEncoderConfig
from blip_diffusion.training.lora import add_lora, lora_state
from blip_diffusion.training.shapes import MINI

BERT_WORDS = 30523  # with [DEC]
CLIP_AT_MINI = ImageEncoderConfig(image_size=128, width=192, layers=6, heads=3, inner=768, patch=16)
SHAPES = {
    "published": ModelConfig(),
    "mini": dataclasses.replace(
        MINI,
        image_encoder=CLIP_AT_MINI,
        qformer=dataclasses.replace(MINI.qformer, vocabulary=BERT_WORDS, positions=512, vision_width=192, queries=16),
        projection_inner=4 * MINI.qformer.width,
        text_encoder=dataclasses.replace(MINI.text_encoder, vocabulary=49408, positions=77),
        reference=ReferenceConfig(128),
        unet={name: value for name, value in MINI.unet.items() if not name.startswith("encoder_hid_dim")}
        | {"cross_attention_dim": MINI.text_encoder.width},
    ),
}
PIXELS = {"published": 512, "mini": 128}
TINY_VAE = "tiny_vae"  # in a model's folder, of the shape of `madebyollin/taesd`
RANKS = {"published": 64, "mini": 2}  # of a consistency LoRA: that of `latent-consistency/lcm-lora-sdv1-5`, and mini's


def build(name: str, folder: Path) -> Path:
    """Write the model if it is missing. `published` takes 6 GB of disk and of memory."""
    if (folder / CONSISTENCY_LORA).is_file():
        return folder
    torch.manual_seed(0)
    shape = SHAPES[name]
    model = BlipDiffusion(
        build_subject_encoder(shape),
        build_text_encoder(shape.text_encoder),
        UNet2DConditionModel(**shape.unet),
        AutoencoderKL(**shape.vae),
        tokenizer=clip_tokenizer(),
        qformer_tokenizer=bert_tokenizer(),
        scheduler=published_scheduler(),
        reference=shape.reference,
    )
    save_model(model, folder)
    _write_words(folder)
    AutoencoderTiny(latent_channels=latent_shape(name)[0]).save_pretrained(folder / TINY_VAE)
    add_lora(model.unet, RANKS[name], ALL_UNET_LAYERS)
    save_lora(folder / CONSISTENCY_LORA, lora_state(model.unet), {}, rank=RANKS[name])
    return folder


def _write_words(folder: Path) -> None:
    """Write the vocabularies of CLIP and BERT in the files that transformers 4 reads."""
    table = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(table["vocab"]), encoding="utf-8")
    merges = (ASSETS / "clip" / "merges.txt").read_text(encoding="utf-8")
    (folder / "tokenizer" / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "bert").mkdir(exist_ok=True)
    (folder / "bert" / "vocab.txt").write_bytes((ASSETS / "bert-base-uncased" / "vocab.txt").read_bytes())


def latent_shape(name: str) -> tuple[int, int, int]:
    """Return the latent shape (C, H, W)."""
    shape = SHAPES[name]
    side = PIXELS[name] // 2 ** (len(shape.vae["block_out_channels"]) - 1)
    return int(shape.unet.get("in_channels", 4)), side, side
