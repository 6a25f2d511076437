"""Write `golden/`: a tiny BLIP-Diffusion model of diffusers' classes, and its intermediate tensors and images.

It needs the last versions that compute BLIP-Diffusion rightly; transformers 5 makes the published text encoder
bidirectional without a word. Nothing else of their dependencies matters, torch 2.13 and numpy 2.4 included:

    pip install --target peers --no-deps \\
        diffusers==0.33.1 transformers==4.49.0 tokenizers==0.21.4 huggingface_hub==0.30.2
    PYTHONPATH=peers python tests/parity/make_golden.py --out tests/parity/golden

Weights are drawn by numpy from a seed that is the parameter's name, so that they depend on no version: the
libraries' own initial weights are 0 or 1e-10 in places, and would hide errors.
"""

import argparse
import json
import os
import string
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines import BlipDiffusionControlNetPipeline, BlipDiffusionPipeline
from diffusers.pipelines.blip_diffusion.blip_image_processing import BlipImageProcessor
from diffusers.pipelines.blip_diffusion.modeling_blip2 import Blip2QFormerModel
from diffusers.pipelines.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPTokenizer
from transformers.models.blip_2.configuration_blip_2 import Blip2Config
from transformers.models.clip.configuration_clip import CLIPTextConfig

WIDTH, QUERIES, VISION = 16, 4, 24
LETTERS = list(string.ascii_lowercase)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    pipe = build(out)
    np.savez(out / "dump.npz", **{name: tensor.numpy() for name, tensor in computed(pipe).items()})
    pipe.save_pretrained(out / "pipe")
    net = filled(controlnet(), "controlnet")
    net.save_pretrained(out / "controlnet")
    np.savez(out / "controlnet.npz", **{name: tensor.numpy() for name, tensor in controlled(pipe, net).items()})


def build(out: Path) -> BlipDiffusionPipeline:
    """The pipeline. U-Net and VAE are equally deep, because the peer takes the size of latents from the U-Net's."""
    bert, clip = write_bert(out / "tok" / "bert"), write_clip(out / "tok" / "clip")
    pipe = BlipDiffusionPipeline(
        tokenizer=clip,
        text_encoder=filled(text_encoder(clip), "text"),
        vae=filled(vae(), "vae"),
        unet=filled(unet(), "unet"),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            set_alpha_to_one=False,
            skip_prk_steps=True,
        ),
        qformer=filled(qformer(bert), "qformer"),
        image_processor=BlipImageProcessor(size={"height": 28, "width": 28}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def computed(pipe: BlipDiffusionPipeline) -> dict[str, Tensor]:
    """Every intermediate tensor, and images. Lengths are unequal and the reference is not square, on purpose."""
    reference, _, latents = inputs()
    pixels = pipe.image_processor.preprocess(reference, return_tensors="pt")["pixel_values"]
    queries = pipe.get_query_embeddings(pixels, ["teapot"])
    both = torch.cat([pixels, pixels.flip(-1)])
    prompt = pipe._build_prompt(["swimming underwater"], ["dog"])
    empty = pipe.tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    options = {"height": 32, "width": 32, "output_type": "pt", "num_inference_steps": 5}

    def generate(**more: Any) -> Tensor:
        return pipe("swimming underwater", reference, "teapot", "dog", **options, **more).images

    return {
        "pixel_values": pixels,
        "vision_last_hidden_state": pipe.qformer.visual_encoder(pixels).last_hidden_state,
        "query_embeds": queries,
        "query_embeds_batch2_padded": pipe.get_query_embeddings(both, ["dog", "teapot x"]),
        "prompt_ids": pipe.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=77 - QUERIES, return_tensors="pt"
        ).input_ids,
        "ctx_text_embeddings": pipe.encode_prompt(queries, prompt, "cpu"),
        "uncond_ids": empty,
        "uncond_text_embeddings": pipe.text_encoder(input_ids=empty, ctx_embeddings=None)[0],
        "image": generate(latents=latents),
        "image_g1": generate(latents=latents, guidance_scale=1.0),
        "image_neg": generate(latents=latents, neg_prompt="blurry", prompt_reps=1),
        "image_seed0": generate(generator=torch.Generator().manual_seed(0)),
    }


@torch.no_grad()
def controlled(pipe: BlipDiffusionPipeline, net: nn.Module) -> dict[str, Tensor]:
    """Write the preprocessed control image, for both halves of guidance, and the generated image."""
    reference, image, latents = inputs()
    both = BlipDiffusionControlNetPipeline(**pipe.components, controlnet=net)
    both.set_progress_bar_config(disable=True)
    options = {"height": 32, "width": 32, "output_type": "pt", "num_inference_steps": 5, "latents": latents}
    return {
        "control_image": both.prepare_control_image(image, 32, 32, 1, 1, "cpu", torch.float32, True),
        "image_controlnet": both("swimming underwater", reference, image, "teapot", "dog", **options).images,
    }


def inputs() -> tuple[Image.Image, Image.Image, Tensor]:
    """A reference, a control image and noise."""
    rng = np.random.RandomState(7)
    reference = rng.randint(0, 256, (40, 32, 3), dtype=np.uint8)
    control = rng.randint(0, 256, (32, 32, 3), dtype=np.uint8)
    noise = torch.from_numpy(rng.randn(1, 4, 16, 16).astype("float32"))
    return Image.fromarray(reference), Image.fromarray(control), noise


def filled(module: nn.Module, prefix: str, std: float = 0.15) -> nn.Module:
    """Weights that only the names decide."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            rng = np.random.RandomState(zlib.crc32(f"{prefix}.{name}".encode()) % 2**31)
            values = rng.randn(*parameter.shape).astype("float32") * std
            is_norm_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(torch.from_numpy(values + 1 if is_norm_scale else values))
    return module.eval()


def text_encoder(tokenizer: CLIPTokenizer) -> ContextCLIPTextModel:
    size = len(tokenizer)
    return ContextCLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )


def qformer(tokenizer: Path) -> Blip2QFormerModel:
    vision = {
        "hidden_size": VISION,
        "intermediate_size": 4 * VISION,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    words = {
        "vocab_size": 64,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 512,
        "cross_attention_frequency": 1,
        "encoder_hidden_size": VISION,
    }
    return Blip2QFormerModel(
        Blip2Config(
            vision_config=vision, qformer_config=words, num_query_tokens=QUERIES, tokenizer=os.path.relpath(tokenizer)
        )
    )


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
    )


def controlnet() -> ControlNetModel:
    return ControlNetModel(
        block_out_channels=(8, 16),
        norm_num_groups=8,
        layers_per_block=1,
        in_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 16),
    )


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=8,
        layers_per_block=1,
        latent_channels=4,
        sample_size=32,
    )


def write_bert(folder: Path) -> Path:
    """A WordPiece vocabulary of letters and a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cat", "tea", "##pot"]
    words += LETTERS + [f"##{letter}" for letter in LETTERS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(folder / "vocab.txt").save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> CLIPTokenizer:
    """A byte-pair vocabulary of letters, digits and one word."""
    folder.mkdir(parents=True, exist_ok=True)
    single = [*LETTERS, ",", ".", *string.digits]
    words = [*single, *(f"{sign}</w>" for sign in single), "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nd o\ndo g</w>\n")
    clip = CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=77)
    clip.save_pretrained(folder)
    return clip


if __name__ == "__main__":
    main()
