"""The command that scores a model on the held-out subjects of a world.

python -m blip_diffusion.evaluation.bench --model DIR --world FILE --out DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.world import World
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.evaluation.cases import Case, mini_bench
from blip_diffusion.evaluation.judges import DinoJudge, Judge, Lite2Judge
from blip_diffusion.evaluation.report import markdown, write
from blip_diffusion.evaluation.scoring import Draw, evaluate


def pipeline_draw(pipe: Any, **settings: Any) -> Draw:
    """A pipeline as a generator; `settings` are arguments of its call."""

    def draw(cases: Sequence[Case]) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        pictures: Tensor = pipe(
            [case.prompt for case in cases],
            images.to_pictures(torch.stack([case.reference for case in cases])),
            [case.category for case in cases],
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
            output_type="pt",
            **settings,
        ).images
        return pictures

    return draw


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores a model and prints the table."""
    parser = argparse.ArgumentParser(description="Scores a model on the held-out subjects of a world.")
    parser.add_argument("--model", default="mini", help="a name or a folder")
    parser.add_argument("--world", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--subjects", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of sampling; default: the model's")
    parser.add_argument("--guidance", type=float, help="default: the model's")
    parser.add_argument("--batch", type=int, default=32)
    flags = parser.parse_args(arguments)
    try:
        print(_score(flags))
    except BlipDiffusionError as error:
        print(f"Error: {error}")
        return 2
    return 0


def _score(flags: argparse.Namespace) -> str:
    from blip_diffusion.pipelines.generate import BlipDiffusionPipeline

    judges: list[Judge] = [DinoJudge(), Lite2Judge()]
    world = World.load(flags.world)
    bench = mini_bench(world, subjects=flags.subjects, prompts=flags.prompts, seeds=flags.seeds)
    pipe = BlipDiffusionPipeline.from_pretrained(flags.model)
    latents = pipe.model.latents
    report, pictures = evaluate(
        pipeline_draw(pipe, num_inference_steps=flags.steps, guidance_scale=flags.guidance),
        world,
        bench,
        round_trip=lambda pixels: latents.decode(latents.encode(pixels)),
        judges=judges,
        size=int(pipe.unet.config.sample_size) * latents.factor,
        batch=flags.batch,
        tell=lambda step: print(step, file=sys.stderr, flush=True),
    )
    write(report, pictures, flags.out)
    return markdown(report)


if __name__ == "__main__":
    raise SystemExit(main())
