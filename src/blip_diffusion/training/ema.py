"""The exponential moving average of what is trained: the weights that are shown, judged and exported."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """A float32 average of named parameters, which it keeps a reference to.

    The decay warms up as min(decay, (1 + t) / (10 + t)) over the updates t, so that the start is soon forgotten.
    With a decay of 0 the parameters are their own average, and there is no copy of them.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self._names = list(parameters)
        self._parameters = [parameter.detach() for parameter in parameters.values()]
        self._average = [parameter.float().clone() for parameter in self._parameters] if decay else self._parameters

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages after optimizer step `step`, counted from 0."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._parameters, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Exchanges parameters and average while it lasts, exactly; nested, it gives the raw weights back."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        if not self.decay:
            return
        raw = [parameter.clone() for parameter in self._parameters]
        torch._foreach_copy_(self._parameters, self._average)
        torch._foreach_copy_(self._average, raw)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by name."""
        return dict(zip(self._names, self._average, strict=True))
