import torch
from peft import LoraConfig
from torch import Tensor, nn

from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.encoding_cache import Memo, state_of


class Counted:
    """Computes the square of each place, and remembers for which it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, places: list[int]) -> Tensor:
        self.asked += places
        return torch.tensor([[place**2] for place in places])


def test_each_is_computed_once() -> None:
    memo, compute = Memo(), Counted()
    assert memo.rows(["a", "b", "a"], compute).flatten().tolist() == [0, 1, 0]
    assert memo.rows(["b", "c"], compute).flatten().tolist() == [1, 1]
    assert compute.asked == [0, 1, 1]


def test_the_oldest_is_forgotten() -> None:
    memo, compute = Memo(size=2), Counted()
    assert memo.rows(list("abcd"), compute).flatten().tolist() == [0, 1, 4, 9]  # more than it keeps, at once
    memo.rows(["c"], compute)
    memo.rows(["e"], compute)
    assert compute.asked == [0, 1, 2, 3, 0]
    memo.rows(["c"], compute)
    assert compute.asked == [0, 1, 2, 3, 0]
    memo.rows(["d"], compute)
    assert compute.asked == [0, 1, 2, 3, 0, 0]


def test_rows_are_ones_own() -> None:
    memo, compute = Memo(), Counted()
    memo.rows(["a"], compute).add_(7)
    assert memo.rows(["a"], compute).item() == 0


def test_the_state_changes_with_the_weights(model: BlipDiffusion) -> None:
    encoder = model.text_encoder
    seen = [state_of(encoder)]
    assert state_of(encoder) == seen[0]

    def changed() -> bool:
        seen.append(state_of(encoder))
        return seen[-1] not in seen[:-1]

    with torch.no_grad():
        encoder.final_layer_norm.bias.add_(1)
    assert changed()
    encoder.final_layer_norm.bias = nn.Parameter(torch.zeros(32))
    assert changed()
    encoder.to(torch.bfloat16)
    assert changed()
    encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "one")
    assert changed()
    layer = encoder.encoder.layers[0].self_attn.q_proj
    layer.scale_layer(0.5)
    assert changed()
    encoder.disable_adapters()
    assert changed()
    assert state_of(nn.Linear(2, 2)) != state_of(nn.Linear(2, 2))
