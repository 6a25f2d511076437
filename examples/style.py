"""Transfer the style of one image to the object of another: the style image is the subject, the edges are the content.

    python examples/style.py --content examples/armchair.png --content-category armchair --out out/style.png

The edges go through the model's own ControlNet or T2I-Adapter for canny, or the one that --adapter names; without any,
only the word of the object is left of it. Columns: the object, the style, then rising subject scales.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import T2IAdapter
from PIL import Image, ImageOps

from blip_diffusion import BlipDiffusionPipeline
from blip_diffusion.annotators import annotate
from blip_diffusion.images import as_rgb, fit_square, grid

FOLDER = Path(__file__).parent
STYLES = {"cat.jpg": "cat", "apple.png": "apple", "owl.png": "owl"}
SCALES = (0.0, 0.5, 1.0, 1.5)


def main() -> None:
    """Generate the object in each style."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", type=Path, default=FOLDER / "armchair.png")
    parser.add_argument("--content-category", default="armchair")
    parser.add_argument("--style", type=Path, nargs="+", default=[FOLDER / name for name in STYLES])
    parser.add_argument("--style-category", nargs="+", default=list(STYLES.values()))
    parser.add_argument("--prompt", default="on a plain white background")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--preset", default="exact")
    parser.add_argument("--adapter", help="the folder of a T2I-Adapter for canny edges, as train-control writes it")
    parser.add_argument("--out", type=Path, default=Path("out/style.png"))
    flags = parser.parse_args()
    pipe = BlipDiffusionPipeline.from_pretrained(flags.model)
    pipe.set_preset(flags.preset)
    content = as_rgb(Image.open(flags.content))
    control = control_of(pipe, content, flags.adapter)
    cells = []
    for path, category in zip(flags.style, flags.style_category, strict=True):
        style = Image.open(path)
        images = [
            pipe(
                flags.prompt, style, category, flags.content_category,
                subject_scale=scale, generator=torch.Generator().manual_seed(0), **control,
            ).images[0]
            for scale in SCALES
        ]  # fmt: skip
        shown = [
            ImageOps.pad(content, images[0].size, color="white"),
            fit_square(as_rgb(style), images[0].width, "pad"),
        ]
        cells += [*shown, *images]
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    grid(cells, 2 + len(SCALES)).save(flags.out)
    print(flags.out)


def control_of(pipe: BlipDiffusionPipeline, content: Image.Image, adapter: str | None) -> dict[str, Any]:
    """Return the arguments that keep the edges of the content; none where there is no network for them."""
    net = T2IAdapter.from_pretrained(adapter) if adapter else pipe.t2i_adapters.get("canny") or pipe.controlnet
    if net is None:
        print("The model has no network for edges: of the content only its word is left.")
        return {}
    side = pipe.model.image_size
    square = fit_square(content, side, "pad")
    return {"image": annotate(square, "canny"), "controlnet": net}


if __name__ == "__main__":
    main()
