"""What was encoded is kept: twenty prompts of one subject, in one call or in twenty, cost its encoding once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


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
