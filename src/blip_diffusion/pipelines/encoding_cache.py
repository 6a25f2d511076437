"""A cache of encodings: twenty prompts of one subject, in one call or in twenty, encode it once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class EncodingCache:
    """The latest encodings, by what they were computed from.

    Args:
        size: How many to keep.
    """

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self._encodings: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Return one encoding per key.

        Args:
            keys: One hashable per encoding; equal keys share one.
            compute: Called with the indices into `keys` of the unknown ones; returns their encodings (N, ...).

        Returns:
            The encodings (len(keys), ...).
        """
        found = {key: self._encodings[key] for key in keys if key in self._encodings}
        unknown = [index for index, key in enumerate(keys) if key not in found and key not in keys[:index]]
        if unknown:
            found |= {keys[index]: one.clone() for index, one in zip(unknown, compute(unknown), strict=True)}
        for key in dict.fromkeys(keys):
            self._encodings[key] = found[key]
            self._encodings.move_to_end(key)
        while len(self._encodings) > self.size:
            self._encodings.popitem(last=False)
        return torch.stack([found[key] for key in keys])
