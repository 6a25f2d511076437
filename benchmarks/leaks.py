"""Memory and open files of one process over many generations, subject switches, LoRA loads and edits.

python benchmarks/leaks.py --model mini --calls 300 --out out/leaks

After a warm-up of 20 rounds, a straight line is fitted to the resident memory of each kind of call. The exit code is 1
if it grows by more than `--max-growth` MiB in all, or if files stay open. Use a small model: growth does not depend on
its size. The result is `leaks.json`, and a table on stdout.
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from blip_diffusion import BlipDiffusionPipeline

WARM_UP = 20
EXAMPLES = Path(__file__).parent.parent / "examples"
Call = Callable[[int], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--calls", type=int, default=300, help="generations; a quarter of it of each other kind")
    parser.add_argument("--max-growth", type=float, default=16.0, metavar="MIB")
    parser.add_argument("--out", type=Path, default=Path("out/leaks"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipe = BlipDiffusionPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for name, call in calls(pipe, arguments.out).items():
        rows.append(measured(name, call, arguments.calls if name == "generate" else arguments.calls // 4))
        print(f"{rows[-1]['kind']:16} {rows[-1]['calls']:4d} calls  {rows[-1]['first_mib']:8.1f} MiB at first, "
              f"{rows[-1]['growth_mib']:+6.2f} MiB, {rows[-1]['more_files']:+d} files", flush=True)  # fmt: skip
    (arguments.out / "leaks.json").write_text(json.dumps(rows, indent=2))
    sys.exit(any(row["growth_mib"] > arguments.max_growth or row["more_files"] > 0 for row in rows))


def calls(pipe: Any, out: Path) -> dict[str, Call]:
    """One call of each kind, by its name."""
    dog, cat = (Image.open(EXAMPLES / name).convert("RGB") for name in ("apple.png", "cat.jpg"))
    lora = written_lora(pipe, out / "lora")

    def generate(index: int, reference: Image.Image = dog, category: str = "apple") -> None:
        rng = torch.Generator().manual_seed(index)
        pipe(f"on the beach {index}", reference, category, generator=rng, num_inference_steps=2)

    def switch(index: int) -> None:
        image = (dog, cat)[index % 2].rotate(index)  # a new image each time: the cache is not all that is used
        generate(index, image, ("apple", "cat")[index % 2])

    def with_lora(index: int) -> None:
        pipe.load_lora_weights(lora, adapter_name="style")
        generate(index)
        pipe.unload_lora_weights()

    def edit(index: int) -> None:
        rng = torch.Generator().manual_seed(index)
        pipe.edit(cat, "cat", "apple", dog, mask="none", num_inference_steps=2, generator=rng)

    return {"generate": generate, "switch subjects": switch, "load a LoRA": with_lora, "edit": edit}


def written_lora(pipe: Any, folder: Path) -> Path:
    """Write a LoRA with random weights for the U-Net's attention."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    pipe.unet.delete_adapters("default")
    return folder / "pytorch_lora_weights.safetensors"


def measured(kind: str, call: Call, count: int) -> dict[str, Any]:
    """Call so many times, and return how memory and open files changed after the warm-up."""
    for index in range(WARM_UP):
        call(index)
    gc.collect()
    files, memory = open_files(), []
    for index in range(WARM_UP, WARM_UP + count):
        call(index)
        if index % 10 == 0:
            gc.collect()
        memory.append(resident_mib())
    gc.collect()
    slope = float(np.polyfit(np.arange(count), memory, 1)[0])
    return {
        "kind": kind,
        "calls": count,
        "first_mib": memory[0],
        "last_mib": memory[-1],
        "growth_mib": slope * count,
        "more_files": open_files() - files,
    }


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    """Number of open file descriptors of this process (Linux)."""
    return len(list(Path("/proc/self/fd").iterdir()))


if __name__ == "__main__":
    main()
