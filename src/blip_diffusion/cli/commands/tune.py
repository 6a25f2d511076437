"""`blip-diffusion tune`: personalize a model for your subject from a few photos."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blip_diffusion.cli.flags import (
    MODEL_HELP,
    RESIZE_MODES,
    TRAIN_STEPS_HELP,
    TRAINABLE,
    TRAINABLE_HELP,
    adapter_flags,
    adapter_refs,
    check_adapters,
    check_used,
    flags_for_settings,
    parse_train_steps,
)
from blip_diffusion.control_characters import print_text

UNUSED = {
    "few-shot": ("num_vectors", "train_text_encoder"),
    "dreambooth": ("trainable", "num_vectors"),
    "dreambooth-lora": ("trainable", "num_vectors"),
    "textual-inversion": ("trainable", "train_text_encoder", "num_class_images", "class_images"),
}
"""The methods, with the flags that have no effect in each."""

USES = {
    "few-shot": "--subject {out}",
    "dreambooth-lora": '--lora {out} --category "sks {category}"',
    "textual-inversion": '--embedding {out} --category "<{name}>"',
}
"""Flags of `generate` for what a method writes; `dreambooth` writes a folder for other pipelines."""

SETTINGS = ("method", "trainable", "learning_rate", "batch_size", "num_vectors", "num_class_images", "resize_mode",
            "seed", "train_text_encoder", "flip")  # fmt: skip
"""Settings of `TuneConfig` that have a flag of the same name."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="photos of the subject, or folders")
    parser.add_argument("--category", required=True, metavar="WORD", help="what the subject is, for example dog")
    parser.add_argument("--name", required=True, metavar="WORD", help="the subject's name, for example rex")
    parser.add_argument("--out", type=Path, metavar="FILE", help="output file (default: NAME.safetensors)")
    parser.add_argument(
        "--masks", nargs="+", default=["auto"], metavar="MASK", help="auto (default), none, or one file per photo"
    )
    method_flags(parser)
    training_flags(parser)
    parser.add_argument(
        "--class-images", type=Path, metavar="DIR", help="class images of your own, instead of --num-class-images"
    )
    parser.add_argument("--resume", action="store_true", help="continue after an interruption")


def method_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the model, the method and the use of photos, which `tune-many` has too."""
    parser.add_argument("--model", default="mini", help=MODEL_HELP)
    adapter_flags(parser)
    parser.add_argument("--method", choices=UNUSED, default="few-shot", help="personalization method")
    parser.add_argument("--trainable", choices=TRAINABLE, default="lora", help=TRAINABLE_HELP)
    parser.add_argument("--resize-mode", choices=RESIZE_MODES, help="how photos become square (default: the model's)")
    parser.add_argument("--flip", action="store_true", help="also train on mirrored photos; not for subjects with text")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto (default): a GPU if present")
    parser.add_argument(
        "--gpu-memory-gb",
        type=int,
        choices=(24, 16, 12, 8),
        metavar="GB",
        help="choose settings that fit a GPU of 24, 16, 12 or 8 GB",
    )


def training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training loop, which `tune-many` has too."""
    parser.add_argument("--train-steps", default="auto", metavar="auto|N", help=TRAIN_STEPS_HELP)
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="(default: depends on the method)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="photos per training step (default: 3)")
    parser.add_argument(
        "--num-class-images", type=int, default=0, metavar="N", help="class images for prior preservation (default: 0)"
    )
    parser.add_argument("--train-text-encoder", action="store_true", help="train the text encoder too (dreambooth)")
    parser.add_argument(
        "--num-vectors", type=int, default=1, metavar="N", help="embedding vectors of textual-inversion (default: 1)"
    )
    parser.add_argument(
        "--validation-prompts", nargs="+", metavar="PROMPT", help="two to four scenes for early stopping"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    check_method(arguments, add_flags)
    if arguments.class_images is not None:
        check_used(arguments, add_flags, ("num_class_images",), "with --class-images")

    from blip_diffusion.training.personalize.api import tune
    from blip_diffusion.training.personalize.artifacts import Tuned

    with flags_for_settings(SETTINGS, {"steps": "--train-steps"}):
        tuned: Tuned = tune(
            arguments.photos,
            category=arguments.category,
            name=arguments.name,
            out=arguments.out,
            model=arguments.model,
            config=tune_config(arguments),
            class_images=arguments.class_images,
            **adapter_refs(arguments),
            masks=_masks(arguments.masks),
            segmenter=_segmenter(arguments.masks),
            resume=arguments.resume,
        )
    _print_result(tuned, arguments)


def check_method(arguments: argparse.Namespace, add_flags: Callable[[argparse.ArgumentParser], None]) -> None:
    """Raise `InputError` for flags that the method doesn't use, and for LoRAs and embeddings that are missing."""
    check_used(arguments, add_flags, UNUSED[arguments.method], f"with --method {arguments.method}")
    if arguments.trainable == "embedding":
        check_used(arguments, add_flags, ("num_class_images", "class_images"), "with --trainable embedding")
    if arguments.train_steps != "auto":
        check_used(arguments, add_flags, ("validation_prompts",), f"with --train-steps {arguments.train_steps}")
    check_adapters(arguments)


def _print_result(tuned: Any, arguments: argparse.Namespace) -> None:
    if tuned.result.stopped == "signal":
        print_text(f"stopped after {tuned.step} steps; run the same command with --resume to continue")
        raise KeyboardInterrupt
    print_text(f"{tuned.step} steps, {tuned.result.seconds:.0f} s of training: {tuned.out}")
    if arguments.method in USES:
        print_text(f"use it: {_generate_command(tuned, arguments)}")
    if tuned.scores and not tuned.step:
        print_text("no training step improved the result: the mean of the photos' embeddings was saved")
    if tuned.scores:
        print_text(f"samples and scores during training: {tuned.folder / 'strip.png'}, {tuned.folder / 'curve.png'}")
    if tuned.overfitted:
        print_text("later steps ignored the prompt (overfitting) and were discarded")


def _generate_command(tuned: Any, arguments: argparse.Namespace) -> str:
    """Return the command that generates with what was tuned, and with the LoRAs and words it was tuned on."""
    flags = USES[arguments.method].format(
        out=shlex.quote(str(tuned.out)), name=arguments.name, category=arguments.category
    )
    more = [f"--lora {shlex.quote(text)}" for text in arguments.lora]
    more += [f"--embedding {shlex.quote(str(path))}" for path in arguments.embedding]
    model = shlex.quote(arguments.model)
    return " ".join(['blip-diffusion generate "on the beach" --model', model, flags, *more])


def tune_config(arguments: argparse.Namespace) -> Any:
    """Return the `TuneConfig` of the flags."""
    from blip_diffusion.training.personalize.config import TuneConfig
    from blip_diffusion.training.personalize.early_stopping import ValidationConfig
    from blip_diffusion.training.personalize.memory import fit_to_memory

    prompts = arguments.validation_prompts
    config = TuneConfig(
        method=arguments.method,
        trainable=arguments.trainable,
        steps=parse_train_steps(arguments.train_steps),
        learning_rate=arguments.learning_rate,
        train_text_encoder=arguments.train_text_encoder,
        num_vectors=arguments.num_vectors,
        num_class_images=arguments.num_class_images,
        flip=arguments.flip,
        resize_mode=arguments.resize_mode,
        seed=arguments.seed,
        device=arguments.device,
        batch_size=TuneConfig.batch_size if arguments.batch_size is None else arguments.batch_size,
        validation=ValidationConfig(prompts=tuple(prompts)) if prompts else ValidationConfig(),
    )
    return config if arguments.gpu_memory_gb is None else fit_to_memory(config, arguments.gpu_memory_gb)


def _masks(texts: list[str]) -> Any:
    if texts in (["auto"], ["none"]):
        return texts[0]
    return [Path(path) for path in texts]


def _segmenter(texts: list[str]) -> Any:
    """Return the segmentation model if masks are automatic and its extra is installed."""
    from blip_diffusion.data.segmentation import saliency

    return saliency() if texts == ["auto"] else None
