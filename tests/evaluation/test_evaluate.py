"""Settings that identify a report's images are the same in every process."""

import os
import subprocess
import sys

from diffusers import DDIMScheduler

from blip_diffusion.evaluation.generators.digests import scheduler_digest

SAY = """
from diffusers import DDIMScheduler
from blip_diffusion.evaluation.generators.digests import scheduler_digest
from blip_diffusion.pipelines.presets import build_scheduler
print(scheduler_digest(build_scheduler("dpm++", DDIMScheduler(rescale_betas_zero_snr=True))))
"""


def test_scheduler_digest_is_stable_and_depends_on_noise_levels() -> None:
    """diffusers keeps the names of defaults in a set's order, which is another in each process."""
    result = {
        subprocess.run(
            [sys.executable, "-c", SAY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(result) == 1
    assert scheduler_digest(DDIMScheduler()) != scheduler_digest(DDIMScheduler(beta_end=0.03))
