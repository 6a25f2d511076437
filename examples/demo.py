"""Generate the subjects in this folder in new scenes, from one reference image each, and put them on one page.

python examples/demo.py --out out/demo
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from blip_diffusion.cli.main import main as blip_diffusion

SUBJECTS = {"apple.png": "apple", "armchair.png": "armchair", "owl.png": "owl", "dog.png": "dog"}
PROMPTS = ("on the beach", "in the snow", "on a plain blue background", "on grass", "at night under the stars")
CELL, HEADER, GAP = 128, 18, 2


def main() -> None:
    """Run one `blip-diffusion generate` for each subject, then join their grids."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    grids = [generate(name, category, arguments) for name, category in SUBJECTS.items()]
    path = arguments.out / "contact-sheet.png"
    join(grids).save(path)
    print(f"The contact sheet: {path}")


def generate(name: str, category: str, arguments: argparse.Namespace) -> Path:
    """Generate one subject and return its grid: the reference, then one image for each prompt."""
    grid: Path = arguments.out / Path(name).stem / "row.png"
    grid.unlink(missing_ok=True)  # else the grid of another seed or model would stay, and this one be row_2.png
    reference = Path(__file__).parent / name
    command = ["generate", *PROMPTS, "--reference", str(reference), "--category", category, "--model", arguments.model]
    command += ["--seed", str(arguments.seed), "--out", str(grid.parent), "--grid", str(grid)]
    if blip_diffusion(command):
        raise SystemExit(2)
    return grid


def join(paths: list[Path]) -> Image.Image:
    """Place the grids below each other, under their prompts."""
    grids = [Image.open(path) for path in paths]
    page = Image.new("RGB", (grids[0].width, HEADER + sum(grid.height + GAP for grid in grids)), "white")
    text = ImageDraw.Draw(page)
    for column, words in enumerate(("the reference", *PROMPTS)):
        text.text((column * (CELL + GAP) + 2, 3), words[:26], fill="black", font=ImageFont.load_default(10))
    top = HEADER
    for grid in grids:
        page.paste(grid, (0, top))
        top += grid.height + GAP
    return page


if __name__ == "__main__":
    main()
