"""One contender in a process of its own, in its own environment: it loads, then draws as often as it is told.

It is told by lines of JSON on standard input, {"steps": N, "save": PATH or null}, and answers each with another.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image

QUESTION = ("swimming underwater", "teapot", "dog")
GB = 2**30
Draw = Callable[[int | None], Image.Image]


def main() -> None:
    """Standard output is for answers alone; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    start = time.perf_counter()
    draw = {"peer": peer, "ours": ours}[spec["kind"]](spec)
    print(json.dumps({"load": time.perf_counter() - start, "peak": peak()}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        start, busy = time.perf_counter(), time.process_time()
        image = draw(order["steps"])
        seconds = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy, "peak": peak()}
        if order.get("save"):
            image.save(order["save"])
        print(json.dumps(seconds), file=answers, flush=True)


def peak() -> float:
    """The most memory that the process had so far, mapped files included, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def inputs(spec: dict[str, Any]) -> tuple[Image.Image, torch.Tensor]:
    """The same reference and noise for all."""
    rng = np.random.RandomState(7)
    reference = Image.fromarray(rng.randint(0, 256, (224, 224, 3), dtype=np.uint8))
    return reference, torch.from_numpy(rng.randn(1, *spec["latents"]).astype("float32"))


def ours(spec: dict[str, Any]) -> Draw:
    """This package's pipeline, with a preset's choices."""
    from blip_diffusion import BlipDiffusionPipeline
    from blip_diffusion.pipelines.presets import Preset, resolve_dtype

    choices = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["choices"].items()}
    preset = Preset(**choices)
    dtype = resolve_dtype(preset.dtype, torch.device("cpu"))
    pipe = BlipDiffusionPipeline.from_pretrained(
        spec["model"], torch_dtype=dtype, qformer_tokenizer=Path(spec["model"]) / "bert"
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.set_preset(preset)
    reference, latents = inputs(spec)

    def draw(steps: int | None) -> Image.Image:
        size = {"height": spec["pixels"], "width": spec["pixels"], "resize_mode": "squash"}
        return pipe(QUESTION[0], reference, *QUESTION[1:], latents=latents, num_inference_steps=steps, **size).images[0]

    return draw


def peer(spec: dict[str, Any]) -> Draw:
    """diffusers' pipeline as it was. It is put together part by part, since the Q-Former's words would be fetched."""
    import diffusers
    import transformers
    from diffusers.pipelines import BlipDiffusionPipeline
    from diffusers.pipelines.blip_diffusion.blip_image_processing import BlipImageProcessor
    from diffusers.pipelines.blip_diffusion.modeling_blip2 import Blip2QFormerModel
    from diffusers.pipelines.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
    from transformers.models.blip_2.configuration_blip_2 import Blip2Config

    model = Path(spec["model"])
    words = {
        "vocab_file": str(model / "tokenizer" / "vocab.json"),
        "merges_file": str(model / "tokenizer" / "merges.txt"),
    }
    how = {"torch_dtype": getattr(torch, spec["dtype"])}
    index = json.loads((model / "model_index.json").read_text())
    config = Blip2Config.from_pretrained(model / "qformer")
    config.tokenizer = str(model / "bert")
    pipe = BlipDiffusionPipeline(
        tokenizer=transformers.CLIPTokenizer(**words, model_max_length=77),
        text_encoder=ContextCLIPTextModel.from_pretrained(model / "text_encoder", **how),
        vae=diffusers.AutoencoderKL.from_pretrained(model / "vae", **how),
        unet=diffusers.UNet2DConditionModel.from_pretrained(model / "unet", **how),
        scheduler=diffusers.PNDMScheduler.from_pretrained(model / "scheduler"),
        qformer=Blip2QFormerModel.from_pretrained(model / "qformer", config=config, **how),
        image_processor=BlipImageProcessor.from_pretrained(model / "image_processor"),
        **{name: index[name] for name in ("ctx_begin_pos", "mean", "std")},
    )
    for part in (pipe.text_encoder, pipe.vae, pipe.unet, pipe.qformer):
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    reference, latents = inputs(spec)

    def draw(steps: int | None) -> Image.Image:
        size = {"height": spec["pixels"], "width": spec["pixels"], "num_inference_steps": steps or 50}
        given = latents.to(how["torch_dtype"])
        question = [QUESTION[0]], reference, [QUESTION[1]], [QUESTION[2]]
        pixels = pipe(*question, latents=given, output_type="pt", **size).images[0]  # numpy has no bfloat16
        return Image.fromarray((pixels.float().permute(1, 2, 0).numpy() * 255).round().astype("uint8"))

    return draw


if __name__ == "__main__":
    main()
