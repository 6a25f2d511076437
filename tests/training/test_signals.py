import signal

import pytest

from blip_diffusion.training import signals


def test_second_interrupt_stops_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    with signals.signals() as arrived:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # torchrun repeats what the terminal has sent
            signal.raise_signal(number)
        assert arrived.is_set()
        monkeypatch.setattr(signals, "PATIENCE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
