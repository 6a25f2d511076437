"""Compare the images of two checkouts byte for byte.

    PYTHONPATH=OLD/src python compare_outputs.py record state.json --files DIR   # makes DIR too
    PYTHONPATH=NEW/src python compare_outputs.py check state.json --files DIR

Each case is one way to generate with `mini`: default, each preset, a LoRA, a subject file, their combinations, the
command line, and the reproduction of an old PNG. Pixels must be equal; PNG files may differ in their metadata.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from blip_diffusion import BlipDiffusionPipeline

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROMPTS = ["on the beach", "in the snow"]


def sha(pixels: bytes) -> str:
    return hashlib.sha256(pixels).hexdigest()[:32]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def digests(images: list[Image.Image]) -> list[str]:
    return [sha(image.tobytes()) + "/" + sha(png(image)) for image in images]


class Cases:
    """Every case returns the digests of its images."""

    def __init__(self, examples: Path, files: Path, golden: Path) -> None:
        self.examples, self.files, self.golden = examples, files, golden
        self.dog = Image.open(examples / "dog.png")
        self.cat = Image.open(examples / "cat.jpg")

    def pipe(self, preset: str | None = None) -> BlipDiffusionPipeline:
        pipe = BlipDiffusionPipeline.from_pretrained("mini")
        pipe.set_progress_bar_config(disable=True)
        if preset:
            pipe.set_preset(preset)
        return pipe

    def call(self, pipe: BlipDiffusionPipeline, *, seed: int = 7, reference: bool = True, **options: Any) -> list[str]:
        options.setdefault("num_inference_steps", 4)
        if options["num_inference_steps"] == 0:
            del options["num_inference_steps"]
        subject = (self.dog, "dog", "dog") if reference else ()
        generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
        return digests(pipe(PROMPTS, *subject, generator=generators, **options).images)

    def default(self) -> list[str]:
        return self.call(self.pipe(), num_inference_steps=0)

    def few_steps(self) -> list[str]:
        pipe = self.pipe()
        return (
            self.call(pipe)
            + self.call(pipe, guidance_scale=1.0)
            + self.call(pipe, negative_prompt="grass", guidance_scale=3.0, guidance_rescale=0.5)
            + self.call(pipe, prompt_strength=0.5, prompt_reps=3, noise_scale=0.7)
            + self.call(pipe, height=64, width=128)
        )

    def exact(self) -> list[str]:
        return self.call(self.pipe("exact"))

    def fast(self) -> list[str]:
        pipe = self.pipe("fast")
        return self.call(pipe, num_inference_steps=0) + self.call(pipe)

    def turbo(self) -> list[str]:
        pipe = self.pipe("turbo")
        results = self.call(pipe, num_inference_steps=0)
        pipe.set_preset("fast")
        results += self.call(pipe)
        pipe.set_preset("turbo")
        return results + self.call(pipe, num_inference_steps=0)

    def lora(self) -> list[str]:
        pipe = self.pipe()
        pipe.load_lora_weights(str(self.files / "lora.safetensors"), adapter_name="style")
        results = self.call(pipe)
        pipe.set_adapters("style", 0.5)
        results += self.call(pipe)
        pipe.set_preset("turbo")
        results += self.call(pipe, num_inference_steps=0)
        pipe.unload_lora_weights()
        results += self.call(pipe, num_inference_steps=0)
        pipe.set_preset("exact")
        return results + self.call(pipe)

    def fused(self) -> list[str]:
        pipe = self.pipe()
        pipe.load_lora_weights(str(self.files / "lora.safetensors"), adapter_name="style")
        pipe.fuse_lora()
        results = self.call(pipe)
        pipe.unfuse_lora()
        return results + self.call(pipe)

    def subject(self) -> list[str]:
        pipe = self.pipe()
        pipe.load_subject(self.files / "subject.safetensors")
        results = self.call(pipe, reference=False) + self.call(pipe)
        pipe.load_subject(self.files / "subject2.safetensors")
        pipe.set_subjects(list(pipe.subjects), [0.3, 0.7])
        results += self.call(pipe, reference=False)
        pipe.load_lora_weights(str(self.files / "lora.safetensors"), adapter_name="style")
        results += self.call(pipe, reference=False)
        pipe.set_preset("turbo")
        results += self.call(pipe, reference=False, num_inference_steps=0)
        pipe.delete_adapters("style")
        results += self.call(pipe, reference=False, num_inference_steps=0)
        pipe.set_subjects(None)
        return results + self.call(pipe, num_inference_steps=0)

    def shared(self) -> list[str]:
        first = self.pipe("turbo")
        second = BlipDiffusionPipeline.from_pipe(first)
        second.set_progress_bar_config(disable=True)
        results = self.call(second) + self.call(first, num_inference_steps=0)
        second.load_subject(self.files / "subject.safetensors")
        results += self.call(second, reference=False) + self.call(first, reference=False, num_inference_steps=0)
        first.unet = copy.deepcopy(first.unet)
        second.set_subjects(None)
        return results + self.call(first, reference=False, num_inference_steps=0) + self.call(second)

    def control(self) -> list[str]:
        pipe = BlipDiffusionPipeline.from_pretrained(
            self.golden / "pipe", controlnet=self.golden / "controlnet", qformer_tokenizer=self.golden / "tok" / "bert"
        )
        pipe.set_progress_bar_config(disable=True)
        results: list[str] = []
        for options in ({}, {"guess_mode": True}, {"controlnet_conditioning_scale": 0.5, "control_guidance_end": 0.5}):
            results += self.call(pipe, image=self.cat, **options)
        return results

    def command_line(self) -> list[str]:
        flags = ["--reference", str(self.examples / "dog.png"), "--category", "dog", "--seed", "3", "--steps", "3"]
        subject = ["--subject", str(self.files / "subject.safetensors") + ":0.4",
                   "--subject", str(self.files / "subject2.safetensors")]  # fmt: skip
        return (
            run(["generate", *PROMPTS, *flags, FLAGS["count"], "2", FLAGS["sheet"], "OUT/page.png"])
            + run(["generate", *PROMPTS, *subject, "--preset", "turbo"])
            + run(
                [
                    "generate",
                    "at night",
                    *flags,
                    FLAGS["fit"],
                    "pad",
                    FLAGS["guidance"],
                    "4",
                    FLAGS["negative"],
                    "grass",
                    "--size",
                    "64x128",
                ]
            )
            + run(["generate", "at night", *flags[:4], "--preset", "exact"])
        )

    def reproduced(self) -> list[str]:
        return [d for path in sorted(self.files.glob("old*.png")) for d in run(["generate", FLAGS["again"], str(path)])]


def find_main() -> Callable[[list[str]], int]:
    try:
        from blip_diffusion.cli.main import main
    except ModuleNotFoundError:  # before 0.5
        from blip_diffusion.interfaces.cli import main  # type: ignore[import-not-found, no-redef]
    return main


def known_flags() -> dict[str, str]:
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
        find_main()(["generate", "--help"])
    new = {"again": "--reproduce", "count": "--num-images", "sheet": "--grid", "fit": "--resize-mode",
           "guidance": "--guidance-scale", "negative": "--negative-prompt"}  # fmt: skip
    return {old: flag if flag in help_text.getvalue() else f"--{old}" for old, flag in new.items()}


FLAGS = known_flags()


def run(arguments: list[str]) -> list[str]:
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        code = find_main()([a.replace("OUT/", f"{out}/") for a in arguments] + ["--out", out])
        if code:
            raise SystemExit(f"{arguments} ended with {code}")
        return [sha(np.asarray(Image.open(path).convert("RGB")).tobytes()) for path in sorted(Path(out).glob("*.png"))]


def names() -> Iterator[str]:
    return (name for name, value in vars(Cases).items() if not name.startswith("_") and name not in ("pipe", "call"))


def make_files(files: Path, examples: Path) -> None:
    """Subject and LoRA files with random weights, and PNGs, written by this checkout (run once, on the old one)."""
    from safetensors.torch import save_file

    from blip_diffusion.checkpoint.subject_file import Subject, fingerprint, write_subject

    files.mkdir(parents=True, exist_ok=True)
    pipe = BlipDiffusionPipeline.from_pretrained("mini")
    layers = {n: m for n, m in pipe.unet.named_modules() if n.endswith(("to_q", "to_v", "to_out.0"))}

    def lora(seed: int, rank: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(seed)
        state = {}
        for name, layer in layers.items():
            state[f"{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=g) * 0.1
            state[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=g) * 0.05
        return state

    save_file({f"unet.{k}": v for k, v in lora(1, 4).items()}, files / "lora.safetensors")
    own = {k: v.detach() * 1.05 for k, v in pipe.unet.state_dict().items() if "conv_out" in k}
    base = fingerprint(pipe.unet, pipe.text_encoder)
    for number, (name, image, weights) in enumerate((("subject", "dog.png", {}), ("subject2", "owl.png", own))):
        word = image.split(".")[0]
        embedding = pipe.encode_subject(Image.open(examples / image), word)
        subject = Subject(name=name, category=word, embedding=embedding.float(), base=base, lora=lora(5 + number, 2),
                          alpha=2.0, weights=weights)  # fmt: skip
        write_subject(subject, files / f"{name}.safetensors")
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        find_main()(["generate", "on the moon", "--reference", str(examples / "cat.jpg"), "--category", "cat",
                   "--steps", "3",
                   "--size", "128x64", FLAGS["negative"], "grass", FLAGS["guidance"], "5", FLAGS["fit"], "squash",
                   "--out", out])  # fmt: skip
        find_main()(
            [
                "generate",
                "on the moon",
                "--subject",
                str(files / "subject.safetensors"),
                "--preset",
                "turbo",
                "--out",
                out + "/b",
            ]
        )
        for n, path in enumerate(sorted(Path(out).rglob("*.png"))):
            (files / f"old{n}.png").write_bytes(path.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("state", type=Path)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--examples", type=Path, default=EXAMPLES)
    parser.add_argument("--golden", type=Path, default=EXAMPLES.parent / "tests/parity/golden")
    parser.add_argument("--only", nargs="+", default=list(names()))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.action == "record":
        make_files(arguments.files, arguments.examples)
    cases = Cases(arguments.examples, arguments.files, arguments.golden)
    results = {}
    for name in arguments.only:
        results[name] = getattr(cases, name)()
        print(name, len(results[name]), flush=True)
    if arguments.action == "record":
        arguments.state.write_text(json.dumps(results, indent=1))
        return 0
    state = json.loads(arguments.state.read_text())
    wrong = {
        name: [i for i, (a, b) in enumerate(zip(results[name], state[name], strict=True)) if a != b] for name in results
    }
    wrong = {name: places for name, places in wrong.items() if places}
    print("all equal" if not wrong else f"DIFFERENT: {wrong}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
