"""The exponential moving average of the trained parameters: the weights that are sampled, evaluated and exported."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """A float32 average of named parameters, which it holds by reference.

    The decay warms up as min(decay, (1 + t) / (10 + t)) over the updates t, so that the initial weights count little.
    With a decay of 0 there is no average, and the parameters themselves take its place.
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
        """Context manager: exchange parameters and average, exactly. Nested, it restores the raw weights."""
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
