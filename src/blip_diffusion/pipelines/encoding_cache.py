"""A cache of encodings, so that prompts of one subject, in one call or in several, encode it once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class EncodingCache:
    """A least-recently-used cache of encodings by the inputs that they were computed from.

    Args:
        size: Number of encodings to keep.
    """

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self._encodings: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Return one encoding per key.

        Args:
            keys: One hashable per encoding; equal keys share an encoding.
            compute: Called with the indices of keys that are not cached; returns their encodings (N, ...).

        Returns:
            The encodings (len(keys), ...).
        """
        encodings = {key: self._encodings[key] for key in keys if key in self._encodings}
        missing = [index for index, key in enumerate(keys) if key not in encodings and key not in keys[:index]]
        if missing:
            computed = zip(missing, compute(missing), strict=True)
            encodings |= {keys[index]: encoding.clone() for index, encoding in computed}
        for key in dict.fromkeys(keys):
            self._encodings[key] = encodings[key]
            self._encodings.move_to_end(key)
        while len(self._encodings) > self.size:
            self._encodings.popitem(last=False)
        return torch.stack([encodings[key] for key in keys])
