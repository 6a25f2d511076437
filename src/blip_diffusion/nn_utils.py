"""Inspect networks: their modules, their LoRA layers, their weights without adapters, and when weights changed."""

import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

VERSION = "weights_modified"
"""Attribute with the count of `mark_modified`."""
Value = TypeVar("Value")


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped, or the module itself."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def iter_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of `network.modules()`, fifteen times as fast, because it is not recursive."""
    seen, stack = set(), [network]
    while stack:
        module = stack.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            stack.extend(part for part in reversed(module._modules.values()) if part is not None)


def lora_layers(*networks: nn.Module) -> list["BaseTunerLayer"]:
    """Return the layers that hold adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for network in networks for layer in iter_modules(network) if isinstance(layer, BaseTunerLayer)]


def adapter_state(network: nn.Module) -> Hashable:
    """Return the active adapters of each layer and their scales, which the weights don't contain."""
    return tuple(
        (tuple(layer.active_adapters), layer.disable_adapters, tuple(sorted(getattr(layer, "scaling", {}).items())))
        for layer in lora_layers(network)
    )


def module_configs(network: nn.Module) -> list[list[tuple[str, Any]]]:
    """Return the diffusers configurations of a network and its parts, such as the number of heads."""
    tables = (getattr(module, "config", None) for module in network.modules())
    return [
        sorted((name, value) for name, value in table.items() if not name.startswith("_"))
        for table in tables
        if isinstance(table, Mapping)
    ]


def base_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by their names without PEFT's adapters, and without the adapters' parameters."""
    return _without_adapters(module.named_parameters())


def base_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the module would have without PEFT's adapters."""
    return _without_adapters(module.state_dict().items())


def _without_adapters(named: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    return {
        name.removeprefix("_orig_mod.").replace(".base_layer", ""): value
        for name, value in named
        if ".lora_" not in name and ".modules_to_save" not in name
    }


def weights_version(module: nn.Module) -> Hashable:
    """Return a key that changes when a weight is replaced, written to or cast, or an adapter is added or scaled.

    A write through `.data`, as in PEFT's LoRA merge, changes it only after `mark_modified`.
    """
    tensors = tuple(
        (id(t), t.dtype, t.device, 0 if t.is_inference() else t._version)
        for part in iter_modules(module)
        for t in chain(part._parameters.values(), part._buffers.values())
        if t is not None
    )
    return weakref.ref(module), tensors, adapter_state(module), getattr(module, VERSION, 0)


def mark_modified(*modules: nn.Module) -> None:
    """Change `weights_version` after an in-place update of weights that PyTorch does not count."""
    for module in map(uncompiled, modules):
        setattr(module, VERSION, getattr(module, VERSION, 0) + 1)


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite. A finite sum, which needs no memory, is tried first."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    whole = tensor.float() if tensor.element_size() == 1 else tensor  # torch lacks most operations on 8-bit floats
    return bool(whole.sum(dtype=torch.float32).isfinite()) or bool(whole.isfinite().all())


def holds_all_numbers(tensor: Tensor) -> bool:
    """Return whether a tensor's memory has as many numbers as its shape, none of them used twice."""
    if tensor.is_meta or tensor.layout != torch.strided:
        return False
    needed = 1
    for length, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda one: one[1]):
        if length > 1 and stride < needed:
            return False
        needed += (length - 1) * stride if length else 0
    end = tensor.storage_offset() + (needed if tensor.numel() else 0)
    return tensor.untyped_storage().nbytes() >= end * tensor.element_size()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's values as bytes, to use as a key."""
    return tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()
