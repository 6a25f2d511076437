"""One variant of the benchmark in its own process and environment: it loads a model and generates images on request.

Each request is a line of JSON on standard input, {"steps": N, "save": PATH or null}. Each response is a line of JSON.
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

INPUTS = ("swimming underwater", "teapot", "dog")
GB = 2**30
Generate = Callable[[int | None], Image.Image]


def main() -> None:
    """Answer requests. Only responses go to standard output; output of libraries goes to standard error."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    start = time.perf_counter()
    generate = {"peer": peer, "ours": ours}[spec["kind"]](spec)
    print(json.dumps({"load": time.perf_counter() - start, "peak": peak()}), file=responses, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start, busy = time.perf_counter(), time.process_time()
        image = generate(request["steps"])
        seconds = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy, "peak": peak()}
        if request.get("save"):
            image.save(request["save"])
        print(json.dumps(seconds), file=responses, flush=True)


def peak() -> float:
    """Return the peak memory of the process in GiB, including mapped files."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def inputs(spec: dict[str, Any]) -> tuple[Image.Image, torch.Tensor]:
    """Return the reference and the noise, which are the same for all variants."""
    rng = np.random.RandomState(7)
    reference = Image.fromarray(rng.randint(0, 256, (224, 224, 3), dtype=np.uint8))
    return reference, torch.from_numpy(rng.randn(1, *spec["latents"]).astype("float32"))


def ours(spec: dict[str, Any]) -> Generate:
    """Load this package's pipeline, with the settings of a preset."""
    from blip_diffusion import BlipDiffusionPipeline
    from blip_diffusion.pipelines.presets import Preset, resolve_dtype

    choices: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["choices"].items()}
    preset = Preset(**choices)
    dtype = resolve_dtype(preset.dtype, torch.device("cpu"))
    pipe = BlipDiffusionPipeline.from_pretrained(
        spec["model"], torch_dtype=dtype, qformer_tokenizer=Path(spec["model"]) / "bert"
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.set_preset(preset)
    reference, latents = inputs(spec)

    def generate(steps: int | None) -> Image.Image:
        size = {"height": spec["pixels"], "width": spec["pixels"], "resize_mode": "squash"}
        return pipe(INPUTS[0], reference, *INPUTS[1:], latents=latents, num_inference_steps=steps, **size).images[0]

    return generate


def peer(spec: dict[str, Any]) -> Generate:
    """Load diffusers' pipeline from its components, because it would otherwise download the Q-Former's vocabulary."""
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

    def generate(steps: int | None) -> Image.Image:
        size = {"height": spec["pixels"], "width": spec["pixels"], "num_inference_steps": steps or 50}
        noise = latents.to(how["torch_dtype"])
        inputs_of_call = [INPUTS[0]], reference, [INPUTS[1]], [INPUTS[2]]
        pixels = pipe(*inputs_of_call, latents=noise, output_type="pt", **size).images[0]  # numpy has no bfloat16
        return Image.fromarray((pixels.float().permute(1, 2, 0).numpy() * 255).round().astype("uint8"))

    return generate


if __name__ == "__main__":
    main()
