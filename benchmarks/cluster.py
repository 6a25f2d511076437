"""Images per second of `generate` without Ray and on 1, 2 … actors, and the operations of an image.

python benchmarks/cluster.py --images 64 --actors 1 2 --out out/cluster
python benchmarks/cluster.py --operations

The rate counts from the first batch on, so that neither starting processes nor loading models is in it. The files are
compared with those without Ray. `--operations` counts GFLOP, with tensors that have shapes and no values.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from shapes import SHAPES, latent_shape
from torch.utils.flop_counter import FlopCounterMode

from blip_diffusion.generation.jobs import BATCH_SIZE
from blip_diffusion.generation.output import png_files, save_images
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.generation.run import run
from blip_diffusion.images import open_image

REFERENCE = Path(__file__).parent.parent / "examples" / "dog.png"
CALLS = {"published": {"PNDM, 50 steps": 51, "fast": 10, "turbo": 2}, "mini": {"15 steps": 15, "fast": 10, "turbo": 2}}
"""Calls of the U-Net. `turbo` has no guidance, and so half of the operations of a call."""


def main() -> None:
    """Run what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("out/cluster"))
    parser.add_argument("--operations", action="store_true")
    arguments = parser.parse_args()
    if arguments.operations:
        for name in CALLS:
            print(json.dumps({name: operations(name)}))
        return
    request = GenerationRequest(
        prompts=("on the beach",),
        reference=REFERENCE.read_bytes(),
        category="dog",
        target_category="dog",
        model=arguments.model,
        num_images=arguments.images,
        steps=arguments.steps,
    )
    print(json.dumps(seconds_of_files(request, arguments.out / "files")))
    local = measured(request, arguments.out / "local", None)
    for count in arguments.actors:
        measured(request, arguments.out / f"ray-{count}", count, local)


def measured(
    request: GenerationRequest, out: Path, actors: int | None, expected: list[bytes] | None = None
) -> list[bytes]:
    """Generate all images, print the rate, and return the files."""
    moments: list[float] = []
    begun, load = time.perf_counter(), os.getloadavg()[0]
    backend: Any = "local" if actors is None else "ray"
    paths = run(request, out, backend=backend, actors=actors, progress=False,
                on_saved=lambda *_: moments.append(time.perf_counter()))  # fmt: skip
    later = len(moments) - (actors or 1) * BATCH_SIZE
    files = [path.read_bytes() for path in paths]
    rate = later / (moments[-1] - moments[-later - 1])
    print(json.dumps({"actors": actors or "without Ray", "images a second": round(rate, 3), "load before": load,
                      "seconds in all": round(moments[-1] - begun, 1), "threads": torch.get_num_threads(),
                      "equal files": expected is None or files == expected}), flush=True)  # fmt: skip
    return files


def seconds_of_files(request: GenerationRequest, out: Path, side: int = 512, times: int = 8) -> dict[str, float]:
    """Return processor seconds to compress an image of the published model's size, and to write the file."""
    image = open_image(REFERENCE).convert("RGB").resize((side, side))
    jobs = [("on the beach", seed) for seed in range(times)]
    out.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()
    files = png_files(request, [image] * times, jobs)
    compressed = time.process_time()
    save_images(request, files, jobs, out, set())
    written = time.process_time()
    return {"compress": round((compressed - begun) / times, 4), "write": round((written - compressed) / times, 4),
            "bytes": len(files[0])}  # fmt: skip


def operations(name: str) -> dict[str, float]:
    """Return GFLOP of an image by preset, its decoding included. A multiply-add is two operations."""
    shape = SHAPES[name]
    latents = latent_shape(name)
    with torch.device("meta"), torch.no_grad():
        unet, vae = UNet2DConditionModel(**shape.unet), AutoencoderKL(**shape.vae)
        width = unet.config.cross_attention_dim
        with FlopCounterMode(display=False) as call:
            unet(torch.empty(1, *latents), torch.tensor(1), torch.empty(1, 77, width))
        with FlopCounterMode(display=False) as decoding:
            vae.decode(torch.empty(1, *latents))
    one, last = call.get_total_flops() / 1e9, decoding.get_total_flops() / 1e9
    return {"a call": round(one, 1), "decoding": round(last, 1)} | {
        preset: round(calls * one * (1 if preset == "turbo" else 2) + last) for preset, calls in CALLS[name].items()
    }


if __name__ == "__main__":
    main()
