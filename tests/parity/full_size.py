"""The published model at its full size, against the published code: 1.56 billion random weights in the published files.

The published weights can't be shipped, so `build` writes a checkpoint of their shapes, names and file layout from the
peer's own classes. `peer` and `ours` load it, each in its own environment (`make_golden.py` says how the peer's is
made), and take two steps at 512 x 512; `compare` says how far apart they are, how long it took, and what memory.

    PYTHONPATH=peers python tests/parity/full_size.py build DIR    # 7 GB of disk, 4 GB of memory
    PYTHONPATH=peers python tests/parity/full_size.py peer DIR     # 8 GB of memory, minutes
    python tests/parity/full_size.py ours DIR
    python tests/parity/full_size.py compare DIR
"""

import argparse
import gc
import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

ASSETS = Path(__file__).parents[2] / "src" / "blip_diffusion" / "assets"
QUESTION = ("swimming underwater", "teapot", "dog")
ASKED = {"height": 512, "width": 512, "num_inference_steps": 2, "output_type": "pt"}
BOUNDS = {"pixels": 0.0, "subject tokens": 1e-5, "text states": 1e-5, "image": 5e-5}
UNSAID = "subject tokens where the config doesn't say the layer norms' eps"
GB = 10**9
VISION_EPS = 1e-6
"""The published config doesn't say it: then the peer takes this, and ours LAVIS' 1e-5. Here the config says it."""


def main() -> None:
    steps: dict[str, Callable[[Path], None]] = {"build": build, "peer": peer, "ours": ours, "compare": compare}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=steps)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    steps[arguments.step](arguments.folder)


# ---------------------------------------------------------------------------------------------------------- the weights


def build(folder: Path) -> None:
    """The published folder. One part at a time is in memory."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from diffusers.pipelines.blip_diffusion.blip_image_processing import BlipImageProcessor
    from diffusers.pipelines.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    model = folder / "model"
    write_tokenizer(model / "tokenizer")
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    PNDMScheduler(**levels, set_alpha_to_one=False, skip_prk_steps=True).save_pretrained(model / "scheduler")
    BlipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(model / "image_processor")
    words = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
             "num_attention_heads": 12, "projection_dim": 768}  # fmt: skip
    images = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
              "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}  # fmt: skip
    parts: tuple[tuple[str, bool, Callable[[], Any]], ...] = (
        ("qformer", False, lambda: qformer(folder)),
        ("text_encoder", False, lambda: ContextCLIPTextModel(CLIPTextConfig(**words))),
        ("unet", True, lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)),
        ("vae", True, lambda: AutoencoderKL(**images)),
    )
    total = 0
    for name, safe, make in parts:
        part = filled(make(), name)
        total += sum(parameter.numel() for parameter in part.parameters())
        part.save_pretrained(model / name, safe_serialization=safe)
        del part
        gc.collect()
    config = json.loads((model / "qformer" / "config.json").read_text())
    config["vision_config"]["layer_norm_eps"] = VISION_EPS
    (model / "qformer" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_index(model)
    print(f"{total:,} weights in {model}, {weight_bytes(model) / GB:.2f} GB")


def qformer(folder: Path) -> Any:
    """Image encoder, Q-Former and projection."""
    from diffusers.pipelines.blip_diffusion.modeling_blip2 import Blip2QFormerModel
    from transformers.models.blip_2.configuration_blip_2 import Blip2Config

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 14, "hidden_act": "quick_gelu"}  # fmt: skip
    words = {"vocab_size": 30523, "cross_attention_frequency": 1, "encoder_hidden_size": 1024}
    config = Blip2Config(vision_config=vision, qformer_config=words, num_query_tokens=16, tokenizer=berts_words(folder))
    model = Blip2QFormerModel(config)
    del config.tokenizer  # the published config has none
    return model


def filled(module: nn.Module, prefix: str) -> nn.Module:
    """Return weights that keep activations near one; the seed is the name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.Generator().manual_seed(zlib.crc32(f"{prefix}.{name}".encode()))
            table = parameter.ndim > 1 and len(parameter) > 1
            parameter.normal_(0, parameter[0].numel() ** -0.5 if table else 0.2, generator=noise)
            if parameter.ndim == 1 and name.endswith("weight"):  # a norm's
                parameter += 1
    return module.eval()


def berts_words(folder: Path) -> str:
    """A folder of bert-base-uncased's word list, which the peer would fetch."""
    (folder / "bert").mkdir(parents=True, exist_ok=True)
    (folder / "bert" / "vocab.txt").write_bytes((ASSETS / "bert-base-uncased" / "vocab.txt").read_bytes())
    return str(folder / "bert")


def write_tokenizer(folder: Path) -> None:
    """CLIP's words in two files, as published."""
    from transformers import CLIPTokenizer
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    merges = (ASSETS / "clip" / "merges.txt").read_text(encoding="utf-8")
    letters = list(bytes_to_unicode().values())
    joined = ["".join(line.split()) for line in merges.splitlines()[1:]]
    words = [*letters, *(f"{a}</w>" for a in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=77).save_pretrained(folder)


def write_index(model: Path) -> None:
    """`model_index.json`, as the published one names its parts."""
    classes = {"image_processor": "BlipImageProcessor", "qformer": "Blip2QFormerModel",
           "text_encoder": "ContextCLIPTextModel"}  # fmt: skip
    others = {"scheduler": ("diffusers", "PNDMScheduler"), "tokenizer": ("transformers", "CLIPTokenizer"),
              "unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}  # fmt: skip
    index = {
        "_class_name": "BlipDiffusionPipeline",
        "_diffusers_version": "0.18.0.dev0",
        "ctx_begin_pos": 2,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        **{name: ("blip_diffusion", kind) for name, kind in classes.items()},
        **others,
    }
    (model / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


# --------------------------------------------------------------------------------------------------------- the two runs


@torch.no_grad()
def peer(folder: Path) -> None:
    """diffusers' pipeline as it was.

    It is put together part by part: `from_pretrained` of the whole trips over the `mean` of the published index, and
    the Q-Former's words would be fetched.
    """
    import diffusers
    import transformers
    from diffusers.pipelines import BlipDiffusionPipeline
    from diffusers.pipelines.blip_diffusion.blip_image_processing import BlipImageProcessor
    from diffusers.pipelines.blip_diffusion.modeling_blip2 import Blip2QFormerModel
    from diffusers.pipelines.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
    from transformers.models.blip_2.configuration_blip_2 import Blip2Config

    model = folder / "model"

    def load() -> Any:
        index = json.loads((model / "model_index.json").read_text())
        config = Blip2Config.from_pretrained(model / "qformer")
        config.tokenizer = berts_words(folder)
        return BlipDiffusionPipeline(
            tokenizer=transformers.CLIPTokenizer.from_pretrained(model / "tokenizer"),
            text_encoder=ContextCLIPTextModel.from_pretrained(model / "text_encoder"),
            vae=diffusers.AutoencoderKL.from_pretrained(model / "vae"),
            unet=diffusers.UNet2DConditionModel.from_pretrained(model / "unet"),
            scheduler=diffusers.PNDMScheduler.from_pretrained(model / "scheduler"),
            qformer=Blip2QFormerModel.from_pretrained(model / "qformer", config=config),
            image_processor=BlipImageProcessor.from_pretrained(model / "image_processor"),
            **{name: index[name] for name in ("ctx_begin_pos", "mean", "std")},
        )

    def intermediate(pipe: Any, reference: Image.Image) -> dict[str, Tensor]:
        mean, std = pipe.config.mean, pipe.config.std
        pixels = pipe.image_processor.preprocess(reference, image_mean=mean, image_std=std, return_tensors="pt")
        tokens = pipe.get_query_embeddings(pixels["pixel_values"], [QUESTION[1]])
        prompt = pipe._build_prompt([QUESTION[0]], [QUESTION[2]])
        return {"pixels": pixels["pixel_values"], "subject tokens": tokens,
                "text states": pipe.encode_prompt(tokens, prompt, "cpu")}  # fmt: skip

    measured(folder, "peer", load, intermediate)


@torch.no_grad()
def ours(folder: Path) -> None:
    """The same with this package."""
    from blip_diffusion import BlipDiffusionPipeline, images
    from blip_diffusion.prompts import subject_prompt

    def intermediate(pipe: Any, reference: Image.Image) -> dict[str, Tensor]:
        config = pipe.image_processor
        pixels = images.to_tensor([images.fit_square(reference, config.size, "squash")])
        tokens = pipe.model.subject_tokens(pixels, [QUESTION[1]])
        prompt = subject_prompt(QUESTION[0], QUESTION[2], repetitions=20)
        set_eps(pipe.qformer.image_encoder, 1e-5)
        original = pipe.model.subject_tokens(pixels, [QUESTION[1]])
        set_eps(pipe.qformer.image_encoder, VISION_EPS)
        return {"pixels": images.normalise(pixels, config.mean, config.std), "subject tokens": tokens,
                "text states": pipe.model.text_states([prompt], tokens), UNSAID: original}  # fmt: skip

    def load() -> Any:
        return BlipDiffusionPipeline.from_pretrained(folder / "model")

    measured(folder, "ours", load, intermediate, resize_mode="squash")


def set_eps(encoder: nn.Module, eps: float) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


def measured(
    folder: Path, name: str, load: Callable[[], Any], intermediate: Callable[..., dict[str, Tensor]], **options: Any
) -> None:
    """Load the model, generate an image, and write tensors, times and memory."""
    torch.set_num_threads(1)
    rng = np.random.RandomState(7)
    reference = Image.fromarray(rng.randint(0, 256, (480, 640, 3), dtype=np.uint8))
    latents = torch.from_numpy(rng.randn(1, 4, 64, 64).astype("float32"))
    report = {"before": memory()}
    start = time.perf_counter()
    pipe = load()
    report["load"] = {"seconds": time.perf_counter() - start, **memory()}
    pipe.set_progress_bar_config(disable=True)
    tensors = intermediate(pipe, reference)
    start, busy = time.perf_counter(), time.process_time()
    tensors["image"] = pipe(QUESTION[0], reference, *QUESTION[1:], latents=latents, **ASKED, **options).images
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    report["draw"] = {**seconds, **memory()}
    np.savez(folder / f"{name}.npz", **{key: tensor.numpy() for key, tensor in tensors.items()})
    (folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def memory() -> dict[str, float]:
    """In GB: what the process has of its own, what of it is files that are mapped, and its peak of both together."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    values = {line[0].rstrip(":"): int(line[1]) * 1024 / GB for line in lines if line[0].startswith(("Rss", "VmHWM"))}
    return {"own": values["RssAnon"], "mapped": values["RssFile"], "peak": values["VmHWM"]}


def compare(folder: Path) -> None:
    """How far apart they are. Fails where it is too far, or where loading took more than 1.3 times the files' size."""
    with np.load(folder / "peer.npz") as theirs, np.load(folder / "ours.npz") as mine:
        errors = {name: float(np.abs(theirs[name] - mine[name]).max()) for name in BOUNDS}
        spread = {name: float(theirs[name].std()) for name in BOUNDS}
        unsaid = float(np.abs(theirs["subject tokens"] - mine[UNSAID]).max())
    for name, error in errors.items():
        print(f"{name:15} differs by at most {error:.1e} (bound {BOUNDS[name]:.0e}; its spread is {spread[name]:.2f})")
    print(f"{UNSAID} differ by {unsaid:.1e}")
    reports = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("peer", "ours")}
    for name, report in reports.items():
        print(name, json.dumps(report))
    size = weight_bytes(folder / "model") / GB
    loading = reports["ours"]["load"]["peak"] - reports["ours"]["before"]["peak"]
    print(f"The files have {size:.2f} GB; loading them took our process {loading:.2f} GB more than it had.")
    assert all(error <= BOUNDS[name] for name, error in errors.items()), "too far apart"
    assert loading <= 1.3 * size, "loading takes too much memory"


def weight_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in model.rglob("*") if path.suffix in (".bin", ".safetensors"))


if __name__ == "__main__":
    main()
