"""Quality of the presets with `mini`: the difference between their images and exact ones from the same noise.

    python benchmarks/quality.py --dataset world/world.zip --subjects 12 --num-prompts 4

The metrics are PSNR of pixels, and cosine of DINOv2 features. Compare the cosine with that to an exact image with
another seed, and with the cosines to the reference.
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion import BlipDiffusionPipeline, images
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency
from blip_diffusion.evaluation.features.preprocessing import masked_mean
from blip_diffusion.pipelines.presets import EXACT, FAST, PRESETS, TURBO, Preset

SCENES = ("on the beach", "in the snow", "in a forest", "in a kitchen", "on a street", "at night")
OTHER_SEED = 1000
VARIANTS = {
    "plain float32": Preset(),
    **PRESETS,
    "turbo without a consistency LoRA": replace(TURBO, bundled_lora_steps=None),
    "exact + DPM-Solver++ in 10 steps": replace(EXACT, solver="dpm++", steps=10),
    "exact + UniPC in 10 steps": replace(EXACT, solver="unipc", steps=10),
    "exact + guidance in the first 0.6": replace(EXACT, guidance_interval=(0.0, 0.6)),
    "exact + guidance from 0.2 to 0.8": replace(EXACT, guidance_interval=(0.2, 0.8)),
    "exact + features used twice": replace(EXACT, deepcache_interval=2),
    "exact + features used twice, two layers": replace(EXACT, deepcache_interval=2, deepcache_layers=2),
    "exact + features used three times": replace(EXACT, deepcache_interval=3),
    "fast without features used again": replace(FAST, deepcache_interval=1),
}


@dataclass(frozen=True)
class Inputs:
    """A reference, a category and a scene for each image."""

    references: Tensor  # (B, 3, S, S)
    categories: list[str]
    scenes: list[str]


def main() -> None:
    """Generate, compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--num-prompts", type=int, default=4)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="variants whose name holds a word")
    flags = parser.parse_args()
    inputs = build_inputs(AssetLibrary.load(flags.dataset), flags.subjects, SCENES[: flags.num_prompts])
    focus = DinoV2Saliency()
    exact, _ = generate(flags.model, Preset(), inputs)
    other, _ = generate(flags.model, Preset(), inputs, first=OTHER_SEED)
    references = embed(focus, inputs.references)
    print(f"{len(exact)} images. | PSNR to plain | cosine to plain | cosine to the reference | s an image", flush=True)
    print(_row("another seed", other, exact, references, focus, float("nan")), flush=True)
    for name, preset in VARIANTS.items():
        if any(word in name for word in flags.only):
            generated, seconds = generate(flags.model, preset, inputs)
            print(_row(name, generated, exact, references, focus, seconds), flush=True)


def build_inputs(world: AssetLibrary, subjects: int, scenes: tuple[str, ...]) -> Inputs:
    """Return inputs for held-out subjects, each in every scene."""
    batch = PairSampler(world, SyntheticConfig(split="heldout"), batch_size=subjects, seed=3)(0)
    rows = range(subjects)
    return Inputs(
        batch["reference"].repeat_interleave(len(scenes), dim=0),
        [batch["category"][row] for row in rows for _ in scenes],
        [scene for _ in rows for scene in scenes],
    )


def generate(model: str, preset: Preset, inputs: Inputs, *, first: int = 0) -> tuple[Tensor, float]:
    """Return images (B, 3, S, S), generated eight at a time, and the CPU seconds for each."""
    pipe = BlipDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.set_preset(preset)
    references = images.to_pil(inputs.references)
    parts, busy = [], time.process_time()
    for at in range(0, len(references), 8):
        some = slice(at, at + 8)
        seeds = range(first + at, first + at + len(references[some]))
        parts.append(
            pipe(inputs.scenes[some], references[some], inputs.categories[some], inputs.categories[some],
                 generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="pt").images
        )  # fmt: skip
    return torch.cat(parts), (time.process_time() - busy) / len(references)


def embed(focus: DinoV2Saliency, pixels: Tensor) -> Tensor:
    """Return DINOv2 features of whole images as unit vectors (B, F)."""
    return F.normalize(masked_mean(focus.features_and_mask(pixels)[0], None), dim=-1)


def _row(name: str, generated: Tensor, exact: Tensor, references: Tensor, focus: DinoV2Saliency, seconds: float) -> str:
    one, two = (embed(focus, pixels) for pixels in (generated, exact))
    error = (generated - exact).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    psnr = (-10 * error.log10()).mean().item()
    to_exact, to_reference = ((one * features).sum(-1).mean().item() for features in (two, references))
    return f"{name} | {psnr:.1f} dB | {to_exact:.4f} | {to_reference:.4f} | {seconds:.2f}"


if __name__ == "__main__":
    main()
