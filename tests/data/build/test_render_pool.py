"""Rendering in other processes: broken models, interrupts, and errors of the machine."""

import errno
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from blip_diffusion.data.build import render_pool as module
from blip_diffusion.data.build.render import Model, catalogue
from blip_diffusion.data.build.render_pool import process_pool, render_all
from blip_diffusion.errors import DataError
from tests.data.build.box import write_catalogue

pytest.importorskip("trimesh")
ONE = partial(process_pool, workers=1)


@pytest.fixture
def box(tmp_path: Path) -> Model:
    return catalogue(write_catalogue(tmp_path / "toys.sh3f"))[0]


def test_broken_model_is_skipped(box: Model, tmp_path: Path) -> None:
    messages: list[str] = []
    broken = replace(box, key="toys/none/none", member="toys/none/none.obj")
    result = list(render_all([broken, box], tmp_path, 1, pool=ONE, progress=messages.append))
    assert [model.key for model, _ in result] == ["toys/box/box"]
    assert len(messages) == 1 and "left out toys/none/none" in messages[0]


def test_interrupt_does_not_wait_for_other_models(box: Model, tmp_path: Path) -> None:
    models = [replace(box, key=f"toys/box/box{number}") for number in range(12)]
    result = render_all(models, tmp_path, 1, pool=ONE)
    next(result)
    result.close()  # as an interrupt does
    assert len(list(tmp_path.glob("toys/box/*"))) < 6


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ImportError("trimesh"), BrokenExecutor()])
def test_machine_errors_are_not_attributed_to_models(
    box: Model, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "_attempt" if isinstance(error, BrokenExecutor) else "render", fail)
    in_this_process = lambda function: nullcontext(partial(map, function))  # noqa: E731
    with pytest.raises(DataError, match=r"toys/box/box can't be rendered .* finished models are kept"):
        list(render_all([box], tmp_path, 1, pool=in_this_process))
