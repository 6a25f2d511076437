"""What a report's images depend on is the same in every process."""

import os
import subprocess
import sys

from diffusers import DDIMScheduler

from blip_diffusion.evaluation.evaluate import scheduler_digest

SAY = """
from diffusers import DDIMScheduler
from blip_diffusion.evaluation.evaluate import scheduler_digest
from blip_diffusion.pipelines.presets import build_scheduler
print(scheduler_digest(build_scheduler("dpm++", DDIMScheduler(rescale_betas_zero_snr=True))))
"""


def test_noise_levels_are_told_apart_and_are_the_same_in_every_process() -> None:
    """diffusers keeps the names of defaults in a set's order, which is another in each process."""
    found = {
        subprocess.run(
            [sys.executable, "-c", SAY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
    assert scheduler_digest(DDIMScheduler()) != scheduler_digest(DDIMScheduler(beta_end=0.03))
