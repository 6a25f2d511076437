"""Plot the held-out losses of a training for structure control by hint, read from the run's log.

    python -m studies.structure_control.losses --run runs/control --out losses.png

Where the loss with the right hint falls below those with a wrong one and with an empty one, the network has begun to
use the hint ("sudden convergence", Zhang et al. 2023, section 3.3).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from blip_diffusion.errors import DataError
from blip_diffusion.evaluation.reporting.curve import read_scores
from blip_diffusion.fileio import save_image
from blip_diffusion.plots import Line, line_chart
from blip_diffusion.training.metric_logger import LOG
from studies import print_result

NAMES = {
    "right hint": "heldout/denoising",
    "wrong hint": "heldout/denoising wrong hint",
    "empty hint": "heldout/denoising empty hint",
    "no control": "heldout/denoising no control",
}
"""The lines of the chart, and their names in the log."""


def plot(run: Path, out: Path) -> str:
    """Plot the losses of a run, as differences from that without control, and return the last ones in words.

    Args:
        run: The run's folder.
        out: The image.

    Returns:
        The last losses.

    Raises:
        DataError: If the log has no losses by hint.
    """
    series = read_scores(run / LOG, list(NAMES.values())) if (run / LOG).is_file() else {}
    if set(series) != set(NAMES.values()):
        raise DataError(f"{run / LOG} has no losses by hint: train with objective control and train.sample_every.")
    base = [value for _, value in series[NAMES["no control"]]]
    lines = {
        label: Line([(step, value - other) for (step, value), other in zip(series[name], base, strict=True)])
        for label, name in NAMES.items()
    }
    title = "held-out loss, minus that without control"
    save_image(line_chart(lines, title=title, x_label="steps"), out)
    return ", ".join(f"{label} {series[name][-1][1]:.4f}" for label, name in NAMES.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Plot, and print the last losses."""
    parser = argparse.ArgumentParser(description="Plot held-out losses by hint.")
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run with objective control")
    parser.add_argument("--out", required=True, type=Path, help="the image, a PNG file")
    flags = parser.parse_args(arguments)
    return print_result(lambda: plot(flags.run, flags.out))


if __name__ == "__main__":
    sys.exit(main())
