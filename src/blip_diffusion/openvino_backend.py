"""OpenVINO on CPUs, as an engine for inference in place of torch.

A conversion takes a minute or two for a U-Net of Stable Diffusion's size. It is cached on disk under a key of the
network's weights and settings.
"""

import copy
import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from blip_diffusion.errors import reason
from blip_diffusion.fileio import atomic_dir
from blip_diffusion.nn_utils import adapter_state, lora_layers, module_configs

Run = Callable[..., Any]
"""Tensors to a tensor or several, like the network's forward."""


def openvino(network: nn.Module, *, name: str, quiet: bool = False) -> Run:
    """Return the network on OpenVINO; the network itself, with a warning, if OpenVINO is not installed."""
    _disable_telemetry()
    try:
        import openvino as ov
    except ImportError:
        warnings.warn(
            "OpenVINO isn't installed (pip install 'blip-diffusion[openvino]'): torch computes.", stacklevel=2
        )
        return network
    return OpenVino(ov, network, name=name, quiet=quiet)


def _disable_telemetry() -> None:
    """Hide the package of OpenVINO's telemetry, of which an import writes files to the home folder and reports it."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # an import of it raises ImportError


class OpenVino:
    """A network that is converted when it is first called, and compiled for each set of shapes.

    If OpenVINO can't do that, torch runs the network, with a warning.
    """

    def __init__(self, ov: Any, network: nn.Module, *, name: str, quiet: bool) -> None:
        self._ov, self._network, self._name, self._quiet = ov, network, name, quiet
        self._compiled: dict[tuple[torch.Size, ...], Any] = {}
        self._failed = False

    def __call__(self, *tensors: Tensor) -> Any:
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._compiled and not self._failed:
            self._prepare(tensors)
        if self._failed:
            return self._network(*tensors)
        results = self._compiled[shapes]([_to_openvino(tensor).numpy() for tensor in tensors])
        device = tensors[0].device
        outputs = tuple(torch.from_numpy(results[index].copy()).to(device) for index in range(len(results)))
        return outputs if len(outputs) > 1 else outputs[0]

    def _prepare(self, tensors: tuple[Tensor, ...]) -> None:
        try:
            with tqdm(total=3, desc=f"OpenVINO: {self._name}", disable=self._quiet or None, leave=False) as bar:
                folder = cache_folder() / key_of(self._network, self._ov.__version__)
                bar.update()
                if not (folder / "network.xml").is_file():
                    _convert(self._ov, self._network, tensors, folder)
                bar.update()
                self._compile(folder / "network.xml", tensors)
                bar.update()
        except Exception as error:  # OpenVINO raises C++ errors of many types
            warnings.warn(f"OpenVINO can't run the {self._name} ({reason(error)}): torch computes.", stacklevel=4)
            self._failed = True

    def _compile(self, path: Path, tensors: tuple[Tensor, ...]) -> None:
        core = _core()
        model = core.read_model(path)
        model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, tensors, strict=True)})
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        if next(self._network.parameters()).dtype == torch.float32:  # by default, bfloat16 where the CPU has it
            options["INFERENCE_PRECISION_HINT"] = "f32"
        self._compiled[tuple(tensor.shape for tensor in tensors)] = core.compile_model(model, "CPU", options)


@cache
def _core() -> Any:
    """Return the process's OpenVINO core, which is never freed.

    Freeing it would free OpenVINO's stack for signals, and the next Ctrl-C would end in a segmentation fault.
    """
    import openvino

    return openvino.Core()


def cache_folder() -> Path:
    """Return the folder of conversions."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blip-diffusion" / "openvino"


def key_of(network: nn.Module, version: str) -> str:
    """Return a key of the exact weights, the network's class and settings, its adapters, and library versions."""
    digest = hashlib.blake2b(f"{version} {torch.__version__} {network}".encode(), digest_size=16)
    digest.update(repr((adapter_state(network), module_configs(network))).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_openvino(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()


def _convert(ov: Any, network: nn.Module, example: tuple[Tensor, ...], folder: Path) -> None:
    """Convert a network into a new folder, atomically.

    This equals `openvino.convert_model` without its telemetry.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    plain = network
    if lora_layers(network) or not all(_is_plain(tensor) for tensor in network.state_dict().values()):
        plain = _merged(copy.deepcopy(network).float().cpu())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's tracer warns of every Python branch on a shape
        decoder = TorchScriptPythonDecoder(plain, example_input=tuple(map(_to_openvino, example)))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))  # reads from the decoder, which must live as long
    with atomic_dir(folder) as partial:
        ov.save_model(model, partial / "network.xml", compress_to_fp16=True)


def _merged(network: nn.Module) -> nn.Module:
    """Merge active LoRAs into the network's weights and return it."""
    for layer in lora_layers(network):
        if not layer.disable_adapters:
            layer.merge()
    return network


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and (tensor.dtype == torch.float32 or not tensor.is_floating_point())
