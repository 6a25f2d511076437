"""Generate two subjects in three structures each, by the edges or the mask of an image, and put them on one page.

python examples/structures.py --out out/structures
python examples/structures.py --kind mask --out out/masks
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
    parser.add_argument("--kind", choices=("canny", "mask"), default="canny")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    controls = {name: control_image(name, arguments.kind, arguments.out) for name in STRUCTURES}
    blank = Image.new("RGB", (CELL, CELL), "white")
    rows: list[list[Image.Image]] = [[blank, *(Image.open(path) for path in controls.values())]]
    for subject in SUBJECTS:
        row: list[Image.Image] = [Image.open(EXAMPLES / f"{subject}.png")]
        for (structure, path), scene in zip(controls.items(), SCENES, strict=True):
            folder = arguments.out / f"{subject}-{structure}"
            row.append(generate(subject, f"{arguments.kind}={path}", scene, arguments.seed, folder))
        rows.append(row)
    path = arguments.out / "structures.png"
    table(rows).save(path)
    print(f"The sheet: {path}")


def control_image(structure: str, kind: str, out: Path) -> Path:
    """Return an example, of which the edges are used, or its mask: what is not white."""
    if kind == "canny":
        return EXAMPLES / f"{structure}.png"
    inverted = ImageOps.invert(Image.open(EXAMPLES / f"{structure}.png").convert("L"))
    out.mkdir(parents=True, exist_ok=True)
    inverted.point(lambda value: 255 if value > 16 else 0).save(out / f"{structure}-mask.png")
    return out / f"{structure}-mask.png"


def generate(subject: str, control: str, scene: str, seed: int, folder: Path) -> Image.Image:
    """Generate one image of a subject in the structure of another image."""
    command = ["generate", scene, "--reference", str(EXAMPLES / f"{subject}.png"), "--category", subject]
    command += ["--control", control, "--seed", str(seed), "--out", str(folder)]
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
