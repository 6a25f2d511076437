"""`blip-diffusion evaluate-edits`: edit the photos of a benchmark, and score what stayed and what changed."""

import argparse
import sys
from pathlib import Path

from blip_diffusion.cli.flags import MODEL_HELP
from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError

EDITBENCH, PIE_BENCH = "editbench", "pie-bench"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--model", default="mini", help=MODEL_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the images and the table")
    parser.add_argument(
        "--benchmark",
        default=EDITBENCH,
        metavar="NAME",
        help=f"{EDITBENCH} (default), or {PIE_BENCH}=DIR, the folder of PIE-Bench with its mapping_file.json",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        default=Path("world/world.zip"),
        metavar="FILE",
        help=f"the asset library of {EDITBENCH}, with MiniBench beside it",
    )
    parser.add_argument(
        "--edits",
        type=int,
        metavar="N",
        help=f"number of edits (default: 60 of {EDITBENCH}, all of {PIE_BENCH} that replace a subject)",
    )
    parser.add_argument(
        "--conditions",
        nargs="+",
        metavar="NAME",
        help="copy, generate, truth, inpaint-2, or INVERSION/MASK[/attention], for example direct/difference",
    )
    parser.add_argument("--strength", type=float, default=1.0, help="share of the steps that are run (default: 1)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument(
        "--metrics",
        nargs="*",
        metavar="NAME",
        help="focus, text, structure, perceptual, lpips, dino, clip-b32, clip-l14 (default: the first three, of "
        f"{PIE_BENCH} structure); dino and clip may name a folder: dino=FOLDER",
    )
    parser.add_argument("--lpips", type=Path, metavar="DIR", help="folder of LPIPS' two published files")
    parser.add_argument(
        "--engine", choices=("torch", "compiled", "openvino"), default="torch", help="backend (default: torch)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.devices import device_of
    from blip_diffusion.evaluation.editing.evaluate import EditEvaluationConfig, evaluate_edits

    config = EditEvaluationConfig(
        model=arguments.model,
        pie_bench=_pie_bench(arguments.benchmark),
        dataset=arguments.dataset,
        edits=arguments.edits,
        conditions=tuple(arguments.conditions or ()),
        strength=arguments.strength,
        steps=arguments.steps,
        engine=arguments.engine,
        metrics=None if arguments.metrics is None else tuple(arguments.metrics),
        lpips=arguments.lpips,
    )
    evaluate_edits(
        config,
        arguments.out,
        device=device_of(arguments.device),
        log=lambda line: print_text(line, file=sys.stderr),
    )
    print_text((arguments.out / "edits.md").read_text(encoding="utf-8"), lines=True)
    print_text(arguments.out)


def _pie_bench(benchmark: str) -> Path | None:
    """Return the folder in pie-bench=DIR; `None` for EditBench."""
    name, _, folder = benchmark.partition("=")
    if benchmark == EDITBENCH:
        return None
    if name != PIE_BENCH or not folder:
        raise InputError(f"There is no benchmark {benchmark} of edits: use {EDITBENCH}, or {PIE_BENCH}=DIR.")
    return Path(folder)
