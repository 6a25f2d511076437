import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blip_diffusion.engines import cache_folder, key_of, openvino

X = torch.linspace(-1, 1, 12).view(2, 6)


class Branching(nn.Module):
    """Two inputs, two outputs, and a shape that matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x) * scale
        return y, y.mean(dim=0)


falling_back = pytest.mark.filterwarnings("error:OpenVINO can't run")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_without_openvino_torch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    network = Branching()
    with pytest.warns(UserWarning, match=r"pip install 'blip-diffusion\[openvino\]'"):
        assert openvino(network, name="network") is network


@falling_back
def test_a_network_runs_and_is_converted_once() -> None:
    pytest.importorskip("openvino")
    network = Branching()
    for _ in range(2):
        run = openvino(network, name="network", quiet=True)
        for given in (X, X[:1]):
            for one, other in zip(run(given, torch.tensor(3)), network(given, torch.tensor(3)), strict=True):
                torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
    (kept,) = cache_folder().iterdir()
    assert {path.name for path in kept.iterdir()} == {"network.xml", "network.bin"}


@falling_back
def test_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's own converter reports each conversion, without asking."""
    pytest.importorskip("openvino")
    telemetry = pytest.importorskip("openvino_telemetry")
    told: list[tuple[object, ...]] = []
    for name in ("start_session", "send_event"):
        monkeypatch.setattr(telemetry.Telemetry, name, lambda self, *what, **more: told.append(what))
    openvino(Branching(), name="network", quiet=True)(X, torch.tensor(1))
    assert len(list(cache_folder().iterdir())) == 1 and told == []


def test_the_key_is_of_the_weights() -> None:
    network, other = Branching(), Branching()
    assert key_of(network, "1") == key_of(other, "1") != key_of(other, "2")
    with torch.no_grad():
        other.layer.bias[0] += 1e-6
    assert key_of(network, "1") != key_of(other, "1")


@falling_back
def test_half_precision_is_converted_from_a_copy() -> None:
    pytest.importorskip("openvino")
    network = Branching().to(torch.bfloat16)
    answer, _ = openvino(network, name="network", quiet=True)(X, torch.tensor(1.0))
    assert network.layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(answer, network(X.bfloat16(), torch.tensor(1.0))[0].float(), atol=2e-2, rtol=2e-2)


def test_what_it_cant_run_torch_does(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "blip-diffusion").write_text("a file where the cache's folder should be")
    network = Branching()
    run = openvino(network, name="network", quiet=True)
    with pytest.warns(UserWarning, match="can't run the network"):
        run(X, torch.tensor(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(X, torch.tensor(2))[0], network(X, torch.tensor(2))[0])  # said once
