"""The machine of a benchmark: its description, its peak performance, and the operations of a U-Net call."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from blip_diffusion.devices import has_bfloat16


def machine() -> dict[str, Any]:
    """Return the CPU, library versions, time and load."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {"cpu": names[0], "cores": len(names), "torch": torch.__version__, "python": platform.python_version(),
            "load_before": os.getloadavg(), "time": time.strftime("%Y-%m-%d %H:%M")}  # fmt: skip


def peak_gflops(threads: int) -> dict[str, float]:
    """Return GFLOP/s of a large matrix product by dtype, the best of five."""
    torch.set_num_threads(threads)
    best = {}
    for name in ("float32", "bfloat16") if has_bfloat16() else ("float32",):
        a = torch.randn(2048, 2048, dtype=getattr(torch, name))
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - start)
        best[name] = 2 * 2048**3 / min(seconds[1:]) / 1e9
    return best


def unet_gflop(folder: Path) -> float:
    """Return GFLOP of one U-Net call with both halves of guidance. A multiply-add is two operations."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        side, width = unet.config.sample_size, unet.config.cross_attention_dim
        inputs = torch.empty(2, unet.config.in_channels, side, side), torch.tensor(1), torch.empty(2, 77, width)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(*inputs)
    return counter.get_total_flops() / 1e9
