import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from blip_diffusion.diffusion.deepcache import ShallowUNet, WholeUNet
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.openvino_backend import cache_folder, key_of, openvino

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


def test_torch_runs_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    network = Branching()
    with pytest.warns(UserWarning, match=r"pip install 'blip-diffusion\[openvino\]'"):
        assert openvino(network, name="network") is network


USE = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        print("EVENT", event, arguments)
sys.addaudithook(hook)
import torch
from blip_diffusion.openvino_backend import openvino
network = torch.nn.Linear(4, 4)
print(openvino(network, name="network", quiet=True)(torch.ones(1, 4)).shape)
print(sorted(name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module))
"""


def test_telemetry_is_off(tmp_path: Path) -> None:
    """Neither importing OpenVINO nor a conversion connects to anything, or writes to the home folder."""
    pytest.importorskip("openvino")
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment = {**kept, "HOME": str(home), "USERPROFILE": str(home), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = [sys.executable, "-W", "ignore", "-c", USE]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert ended.stdout.splitlines() == ["torch.Size([1, 4])", "[]"], ended.stdout
    assert not list(home.iterdir())


@falling_back
def test_network_is_converted_once() -> None:
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
def test_telemetry_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's own converter reports each conversion, without asking."""
    pytest.importorskip("openvino")
    telemetry = pytest.importorskip("openvino_telemetry")
    calls: list[tuple[object, ...]] = []
    for name in ("start_session", "send_event"):
        monkeypatch.setattr(telemetry.Telemetry, name, lambda self, *what, **more: calls.append(what))
    openvino(Branching(), name="network", quiet=True)(X, torch.tensor(1))
    assert len(list(cache_folder().iterdir())) == 1 and calls == []


def test_cache_key_depends_on_the_weights() -> None:
    network, other = Branching(), Branching()
    assert key_of(network, "1") == key_of(other, "1") != key_of(other, "2")
    with torch.no_grad():
        other.layer.bias[0] += 1e-6
    assert key_of(network, "1") != key_of(other, "1")


def test_cache_key_depends_on_the_adapters() -> None:
    """Which of them are active, and how strongly: the weights are the same."""
    network = Branching()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are what we want
        for name in ("one", "two"):
            network = inject_adapter_in_model(LoraConfig(r=1, target_modules=["layer"]), network, name)
    layer = network.layer
    assert isinstance(layer, BaseTunerLayer)
    keys = set()
    for names in (["one"], ["two"], ["one", "two"], []):
        layer.set_adapter(names)
        keys.add(key_of(network, "1"))
    layer.set_adapter(["one"])
    layer.set_scale("one", 0.5)
    keys.add(key_of(network, "1"))
    layer.enable_adapters(False)
    keys.add(key_of(network, "1"))
    assert len(keys) == 6


@pytest.mark.parametrize("kind", [WholeUNet, ShallowUNet])
def test_cache_key_depends_on_the_settings(model: BlipDiffusion, kind: type[WholeUNet | ShallowUNet]) -> None:
    assert key_of(kind(model.unet, 1), "1") == key_of(kind(model.unet, 1), "1") != key_of(kind(model.unet, 2), "1")


@pytest.mark.parametrize("change", [{"attention_head_dim": 4}, {"flip_sin_to_cos": False}])
def test_cache_key_depends_on_the_configuration(model: BlipDiffusion, change: dict[str, Any]) -> None:
    """Two networks of the same weights and the same names that compute something else."""
    other = UNet2DConditionModel.from_config({**model.unet.config, **change})
    other.load_state_dict(model.unet.state_dict())
    same = UNet2DConditionModel.from_config({**model.unet.config, "_name_or_path": "elsewhere"})
    same.load_state_dict(model.unet.state_dict())
    assert str(other) == str(model.unet)
    assert key_of(WholeUNet(same, 1), "1") == key_of(WholeUNet(model.unet, 1), "1") != key_of(WholeUNet(other, 1), "1")


@falling_back
def test_lora_weight_is_applied() -> None:
    pytest.importorskip("openvino")
    network = inject_adapter_in_model(LoraConfig(r=1, target_modules=["layer"], init_lora_weights=False), Branching())
    for scale in (1.0, 0.25):
        network.layer.set_scale("default", scale)
        output, _ = openvino(network, name="network", quiet=True)(X, torch.tensor(1.0))
        torch.testing.assert_close(output, network(X, torch.tensor(1.0))[0], atol=2e-2, rtol=2e-2)


@falling_back
def test_lora_is_merged_before_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is converted has it in its weights; the network itself stays as it is."""
    ov = pytest.importorskip("openvino")
    sizes = []
    save = ov.save_model

    def counted(model: Any, *where: Any, **how: Any) -> None:
        sizes.append(len(model.get_ops()))
        save(model, *where, **how)

    monkeypatch.setattr(ov, "save_model", counted)
    plain = Branching()
    network = inject_adapter_in_model(
        LoraConfig(r=1, target_modules=["layer"], init_lora_weights=False), copy.deepcopy(plain)
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for each in (plain, network):
        openvino(each, name="network", quiet=True)(X, torch.tensor(1.0))
    assert len(sizes) == 2 and sizes[0] == sizes[1]
    torch.testing.assert_close(dict(network.state_dict()), before, atol=0, rtol=0)
    network.layer.enable_adapters(False)
    output, _ = openvino(network, name="network", quiet=True)(X, torch.tensor(1.0))
    torch.testing.assert_close(output, plain(X, torch.tensor(1.0))[0], atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@falling_back
def test_network_on_another_device_runs_in_torch() -> None:
    pytest.importorskip("openvino")
    network, x, scale = Branching().cuda(), X.cuda(), torch.tensor(1.0).cuda()
    output, _ = openvino(network, name="network", quiet=True)(x, scale)
    assert output.device == x.device and network.layer.weight.device == x.device
    torch.testing.assert_close(output, network(x, scale)[0], atol=2e-2, rtol=2e-2)


@falling_back
def test_half_precision_is_converted_from_a_copy() -> None:
    pytest.importorskip("openvino")
    network = Branching().to(torch.bfloat16)
    output, _ = openvino(network, name="network", quiet=True)(X, torch.tensor(1.0))
    assert network.layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(output, network(X.bfloat16(), torch.tensor(1.0))[0].float(), atol=2e-2, rtol=2e-2)


def test_unsupported_networks_run_in_torch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "blip-diffusion").write_text("a file where the cache's folder should be")
    network = Branching()
    run = openvino(network, name="network", quiet=True)
    with pytest.warns(UserWarning, match="can't run the network"):
        run(X, torch.tensor(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(X, torch.tensor(2))[0], network(X, torch.tensor(2))[0])  # said once


def test_signals_work_after_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    script = """
import os, signal, torch
from blip_diffusion.openvino_backend import openvino
run = openvino(torch.nn.Linear(64, 64).eval(), name="line", quiet=True)
run(torch.ones(8, 64))
del run
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
for _ in range(3):
    os.kill(os.getpid(), signal.SIGTERM)
assert len(heard) == 3
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=300).returncode == 0
