import torch

from blip_diffusion.training.ema import Ema


def test_ema_equals_the_formula() -> None:
    torch.manual_seed(0)
    parameters = {"a": torch.randn(3, 2), "b": torch.randn(4)}
    expected = {name: value.double().clone() for name, value in parameters.items()}
    ema = Ema(parameters, decay=0.6)
    for step in range(30):
        for value in parameters.values():
            value.add_(torch.randn_like(value))
        ema.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value.double() for name, value in parameters.items()}
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-5, rtol=0)


def test_zero_decay_equals_the_weights() -> None:
    parameters = {"a": torch.zeros(3)}
    ema = Ema(parameters, decay=0.0)
    parameters["a"].fill_(2.5)
    ema.update(0)
    assert torch.equal(ema.state_dict()["a"], parameters["a"])


def test_swapped_restores_weights_after_nesting_and_errors() -> None:
    weight = torch.nn.Parameter(torch.randn(5))
    ema = Ema({"w": weight}, decay=0.9)
    raw = weight.detach().add_(1.0).clone()
    ema.update(0)
    average = ema.state_dict()["w"].clone()
    try:
        with ema.swapped():
            assert torch.equal(weight, average) and not torch.equal(weight, raw)
            with ema.swapped():
                assert torch.equal(weight, raw)
            assert torch.equal(weight, average)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(weight, raw) and torch.equal(ema.state_dict()["w"], average)


def test_ema_is_float32_and_restorable() -> None:
    parameters = {"w": torch.ones(2)}
    ema = Ema(parameters, decay=0.9)
    ema.state_dict()["w"].copy_(torch.tensor([3.0, 4.0]))
    with ema.swapped():
        assert parameters["w"].tolist() == [3.0, 4.0]
    assert ema.state_dict()["w"].dtype == torch.float32
    assert ema.state_dict()["w"].tolist() == [3.0, 4.0] and parameters["w"].tolist() == [1.0, 1.0]
