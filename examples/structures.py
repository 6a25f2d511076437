"""Generate two subjects in three structures each, by the edges of an image, and put them on one page.

python examples/structures.py --out out/structures
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps

from blip_diffusion.cli.main import main as blip_diffusion

EXAMPLES = Path(__file__).parent
SUBJECTS = ("apple", "owl")
STRUCTURES = ("heart", "house", "mug")
SCENES = ("on the beach", "in the snow", "on grass")
CELL, GAP = 128, 2


def main() -> None:
    """Generate each subject in each structure, then paste the images into a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/structures"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    blank = Image.new("RGB", (CELL, CELL), "white")
    rows = [[blank, *(Image.open(EXAMPLES / f"{name}.png") for name in STRUCTURES)]]
    for subject in SUBJECTS:
        reference = Image.open(EXAMPLES / f"{subject}.png")
        pairs = zip(STRUCTURES, SCENES, strict=True)
        rows.append([reference, *(generate(subject, *pair, arguments.seed, arguments.out) for pair in pairs)])
    path = arguments.out / "structures.png"
    table(rows).save(path)
    print(f"The sheet: {path}")


def generate(subject: str, structure: str, scene: str, seed: int, out: Path) -> Image.Image:
    """Generate one image of a subject in the structure of another image."""
    folder = out / f"{subject}-{structure}"
    command = ["generate", scene, "--reference", str(EXAMPLES / f"{subject}.png"), "--category", subject]
    command += ["--control", f"canny={EXAMPLES / structure}.png", "--seed", str(seed), "--out", str(folder)]
    if blip_diffusion(command):
        raise SystemExit(2)
    return Image.open(folder / f"{scene.replace(' ', '-')}-{seed}.png")


def table(rows: list[list[Image.Image]]) -> Image.Image:
    """Paste images into a table with cells of equal size."""
    step = CELL + GAP
    page = Image.new("RGB", (step * len(rows[0]) - GAP, step * len(rows) - GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            page.paste(ImageOps.pad(image.convert("RGB"), (CELL, CELL), color="white"), (x * step, y * step))
    return page


if __name__ == "__main__":
    main()
