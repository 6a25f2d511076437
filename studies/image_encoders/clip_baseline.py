"""Train a small CLIP (Radford et al. 2021) on the synthetic pairs, as a baseline for `retrieval`.

    python -m studies.image_encoders.clip_baseline --dataset world.zip --out runs/clip --minutes 10
    python -m studies.image_encoders.retrieval --dataset world.zip --split heldout --clip runs/clip

It is trained on the training subjects, so compare it on held-out ones only.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler, sentences
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.data.synthetic.tokenizers import prompt_tokenizer
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.images import normalise

PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation of its image normalisation."""
WORDS, LONGEST = 3072, 48
WARMUP = 100


def clip(side: int, *, width: int = 192, layers: int = 6, patch: int = 16, words: int = WORDS) -> Any:
    """Build an untrained `CLIPModel` with (side / patch)² patches and a text encoder of two thirds the depth."""
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": max(1, width // 64)}
    vision = {**shape, "num_hidden_layers": layers, "image_size": side, "patch_size": patch}
    text = {**shape, "num_hidden_layers": max(1, 2 * layers // 3), "vocab_size": words}
    text |= {"max_position_embeddings": LONGEST, "bos_token_id": words - 2, "eos_token_id": words - 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def loss_of(model: Any, tokenizer: Any, images: Tensor, captions: Sequence[str]) -> Tensor:
    """Return the symmetric cross-entropy of images (B, 3, S, S) in [0, 1] and their captions."""
    words = tokenizer(list(captions), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    output = model(**words, pixel_values=normalise(images, *PIXELS), return_loss=True)
    loss: Tensor = output.loss
    return loss


def train(
    world: AssetLibrary, *, minutes: float, batch: int = 64, size: int = 128, lr: float = 6e-4, seed: int = 0
) -> Any:
    """Train a CLIP on targets and captions of the training split for some minutes, with linear decay."""
    torch.manual_seed(seed)
    compose = PairSampler(world, SyntheticConfig(size=size), batch_size=batch, seed=seed)
    tokenizer = prompt_tokenizer(sentences(world), WORDS, LONGEST)
    model = clip(size, words=len(tokenizer))
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1)
    began, step, share = time.monotonic(), 0, 0.0
    while share < 1:
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / WARMUP) * (1 - share)
        pairs = compose(step)
        loss = loss_of(model, tokenizer, pairs["target"], pairs["caption"])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step, share = step + 1, (time.monotonic() - began) / (60 * minutes)
        if step % 50 == 0 or share >= 1:
            print(f"step {step}, {step * batch} pairs: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a CLIP and save it in transformers' layout."""
    parser = argparse.ArgumentParser(description="Trains a small CLIP on a world, for the comparison of encoders.")
    parser.add_argument("--dataset", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=64)
    flags = parser.parse_args(arguments)
    try:
        model = train(AssetLibrary.load(flags.dataset), minutes=flags.minutes, batch=flags.batch)
    except BlipDiffusionError as error:
        print(f"Error: {error}")
        return 2
    model.save_pretrained(flags.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
