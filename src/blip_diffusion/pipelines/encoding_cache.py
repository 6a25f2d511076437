"""What was encoded is kept: twenty prompts of one subject, in one call or in twenty, cost its encoding once."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from blip_diffusion.openvino_backend import adapters_of, modules_of, uncompiled

WRITTEN = "times_written"


class Memo:
    """The last rows of results, by what they were computed from."""

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self._rows: OrderedDict[Hashable, Tensor] = OrderedDict()

    def rows(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """A row a key (len(keys), …). `compute` gets the places in `keys` of the unknown, and answers their rows."""
        found = {key: self._rows[key] for key in keys if key in self._rows}
        places = [place for place, key in enumerate(keys) if key not in found and key not in keys[:place]]
        if places:
            found |= {keys[place]: row.clone() for place, row in zip(places, compute(places), strict=True)}
        for key in dict.fromkeys(keys):
            self._rows[key] = found[key]
            self._rows.move_to_end(key)
        while len(self._rows) > self.size:
            self._rows.popitem(last=False)
        return torch.stack([found[key] for key in keys])


def state_of(module: nn.Module) -> Hashable:
    """Changes with the weights: when one is replaced, written to, or cast, and when a LoRA comes, goes or is scaled.

    When one is written to through `.data`, as PEFT fuses a LoRA, whoever has that done must say so: see `written`.
    """
    tensors = tuple(
        (id(t), t.dtype, t.device, 0 if t.is_inference() else t._version)
        for part in modules_of(module)
        for t in chain(part._parameters.values(), part._buffers.values())
        if t is not None
    )
    return weakref.ref(module), tensors, adapters_of(module), getattr(module, WRITTEN, 0)


def written(*modules: nn.Module) -> None:
    """Says that weights were written to, or will be before they compute again, in a way that nobody can see."""
    for module in map(uncompiled, modules):
        setattr(module, WRITTEN, getattr(module, WRITTEN, 0) + 1)


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's values, as a key."""
    return tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()
