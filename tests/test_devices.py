from typing import Any

import pytest
import torch

from blip_diffusion import devices
from blip_diffusion.devices import device_of, fastest_dtype, has_bfloat16, present_device
from blip_diffusion.errors import InputError

CPU = torch.device("cpu")


def test_devices() -> None:
    assert device_of("cpu") == CPU
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "meta", "cuda:99", "cpu:x", "mps" if torch.cuda.is_available() else "cuda"):
        with pytest.raises(InputError, match=f"There is no device {name} here: use cpu"):
            device_of(name)


@pytest.mark.parametrize("given", [None, 1.5, True, [], object(), torch.zeros(1)])
def test_something_else_than_a_device_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=f"The device is a {type(given).__name__}: use a name"):
        present_device(given)


def test_devices_may_be_given_as_such() -> None:
    assert present_device(CPU) == present_device("cpu") == CPU
    for given in (99, torch.device("cuda", 99), "", -1):
        with pytest.raises(InputError, match="There is no device"):
            present_device(given)


@pytest.mark.parametrize(
    ("able", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)]
)
def test_bfloat16_support_comes_from_the_cpu(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert has_bfloat16() is expected


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_fastest_dtype_is_not_emulated(monkeypatch: pytest.MonkeyPatch, able: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda: able)
    assert fastest_dtype(CPU) == dtype
