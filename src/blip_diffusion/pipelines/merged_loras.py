"""Merge active LoRAs into a network's weights during a call."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from blip_diffusion.nn_utils import lora_layers


class MergedLoras:
    """Context manager: merges active LoRAs into the weights on entry and restores the original tensors on exit.

    The merged weights are computed once and reused: entering and leaving only swaps tensors. That takes the memory of
    the layers with LoRAs once more.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = [(layer, list(layer.active_adapters)) for layer in lora_layers(network) if _can_merge(layer)]
        self._weights = [p for layer, _ in self._layers for p in layer.get_base_layer().parameters()]
        self._other = [weight.data.clone() for weight in self._weights]  # PEFT adds to them in place
        self._swap()
        try:
            for layer, _ in self._layers:
                layer.merge()
        finally:  # also after an interrupt
            self._restore()

    def _swap(self) -> None:
        for index, weight in enumerate(self._weights):
            self._other[index], weight.data = weight.data, self._other[index]

    def _restore(self) -> None:
        for layer, _ in self._layers:
            layer.merged_adapters = []
        self._swap()

    def __enter__(self) -> None:
        for layer, adapters in self._layers:
            layer.merged_adapters = list(adapters)
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._restore()


def _can_merge(layer: BaseTunerLayer) -> bool:
    return bool(layer.active_adapters) and not layer.disable_adapters and not layer.merged
