"""`blip-diffusion tune`: learn a subject of one's own from a few photos."""

import argparse
from pathlib import Path
from typing import Any

from blip_diffusion.cli.flags import STEPS_HELP, TRAIN_HELP, TRAINED, check_used, steps_of

UNUSED = {
    "few-shot": ("vectors", "train_text_encoder"),
    "dreambooth": ("train", "vectors"),
    "dreambooth-lora": ("train", "vectors"),
    "textual-inversion": ("train", "train_text_encoder", "prior"),
}
"""The methods, and what has no say in each."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(command=run)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="pictures of the subject, or folders")
    parser.add_argument("--category", required=True, metavar="WORD", help="what the subject is, for example dog")
    parser.add_argument("--name", required=True, metavar="WORD", help="what it is called, for example rex")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where it is written (default: NAME.safetensors)")
    parser.add_argument("--model", default="mini", help="mini (default), a folder, or a hub id")
    parser.add_argument("--method", choices=UNUSED, default="few-shot", help="few-shot (default), or what it rivals")
    parser.add_argument("--train", choices=TRAINED, default="lora", help=TRAIN_HELP)
    parser.add_argument("--steps", default="auto", metavar="auto|N", help=STEPS_HELP)
    parser.add_argument(
        "--masks", nargs="+", default=["auto"], metavar="MASK", help="auto (default), none, or a file for each photo"
    )
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="(default: the method's own)")
    parser.add_argument("--batch", type=int, metavar="N", help="photos in a step (default: 3)")
    parser.add_argument("--prior", type=int, default=0, metavar="N", help="pictures that keep the category as it was")
    parser.add_argument("--train-text-encoder", action="store_true", help="DreamBooth's text encoder moves as well")
    parser.add_argument("--vectors", type=int, default=1, metavar="N", help="of Textual Inversion's word (default: 1)")
    parser.add_argument("--flip", action="store_true", help="learn from mirror images too; they spoil writing")
    parser.add_argument(
        "--fit", choices=("crop", "squash", "pad"), default="crop", help="how photos are cut square (default: crop)"
    )
    parser.add_argument("--scenes", nargs="+", metavar="PROMPT", help="two to four that --steps auto judges by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument(
        "--memory", type=int, choices=(24, 16, 12, 8), metavar="GB", help="fit a GPU of 24, 16, 12 or 8"
    )
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    check_used(arguments, add_flags, UNUSED[arguments.method], f"in --method {arguments.method}")
    if arguments.train == "embedding":
        check_used(arguments, add_flags, ("prior",), "with --train embedding")
    if arguments.steps != "auto":
        check_used(arguments, add_flags, ("scenes",), f"with --steps {arguments.steps}")

    from blip_diffusion.training.personalize.api import Tuned, tune

    tuned: Tuned = tune(
        arguments.photos,
        category=arguments.category,
        name=arguments.name,
        out=arguments.out,
        model=arguments.model,
        config=_config(arguments),
        masks=_masks(arguments.masks),
        segmenter=_segmenter(arguments.masks),
        resume=arguments.resume,
    )
    if tuned.result.stopped == "signal":
        print(f"stopped after {tuned.step} steps; the same command with --resume goes on")
        raise KeyboardInterrupt
    print(f"{tuned.step} steps, {tuned.result.seconds:.0f} s of training: {tuned.out}")
    if tuned.scores and not tuned.step:
        print("no step was better than none: the mean of the photos' embeddings was kept")
    if tuned.scores:
        print(f"what it looked like meanwhile: {tuned.folder / 'strip.png'}, {tuned.folder / 'curve.png'}")
    if tuned.overfitted:
        print("later steps ignored the prompt (overfitting), and were not kept")


def _config(arguments: argparse.Namespace) -> Any:
    from blip_diffusion.training.personalize.api import TuneConfig
    from blip_diffusion.training.personalize.early_stopping import ValidationConfig
    from blip_diffusion.training.personalize.memory import fitted

    config = TuneConfig(
        method=arguments.method,
        train=arguments.train,
        steps=steps_of(arguments.steps, "--steps"),
        learning_rate=arguments.learning_rate,
        train_text_encoder=arguments.train_text_encoder,
        vectors=arguments.vectors,
        prior_images=arguments.prior,
        flip=arguments.flip,
        fit=arguments.fit,
        seed=arguments.seed,
        device=arguments.device,
        batch_size=TuneConfig.batch_size if arguments.batch is None else arguments.batch,
        validation=ValidationConfig(scenes=tuple(arguments.scenes)) if arguments.scenes else ValidationConfig(),
    )
    return config if arguments.memory is None else fitted(config, arguments.memory)


def _masks(asked: list[str]) -> Any:
    if asked in (["auto"], ["none"]):
        return asked[0]
    return [Path(path) for path in asked]


def _segmenter(asked: list[str]) -> Any:
    """Where masks are to be found, and the extra that finds them is installed."""
    from blip_diffusion.data.segmentation import saliency

    return saliency() if asked == ["auto"] else None
