"""Threads: pipelines that share a U-Net take turns, since LoRAs, subjects and schedulers are changed in place."""

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

from blip_diffusion.errors import InputError
from blip_diffusion.nn_utils import uncompiled

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "qformer", "image_processor", "qformer_tokenizer")
"""The components of a pipeline that are not optional."""

LIBRARY_LOCK = threading.RLock()
"""Held while PEFT and diffusers load, because they replace methods of `nn.Module` for all threads meanwhile."""

_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()
Method = TypeVar("Method", bound=Callable[..., Any])


def lock_of(unet: nn.Module) -> Any:
    """Return the lock of a U-Net, which all its pipelines use. The thread that holds it may take it again."""
    with _GUARD:
        return _LOCKS.setdefault(uncompiled(unet), threading.RLock())


def check_complete(pipe: Any) -> None:
    """Raise `InputError` if a part is `None`, as after diffusers' `from_pretrained(vae=None)`."""
    for name in PARTS:
        if getattr(pipe, name, None) is None:
            raise InputError(f"The pipeline has no {name}: load it without {name}=None.")


def exclusive(method: Method) -> Method:
    """Decorate a pipeline's method: no other thread uses the same U-Net meanwhile.

    The method raises `InputError` on a pipeline without all of its parts.
    """

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_complete(self)
        with lock_of(self.unet):
            return method(self, *args, **kwargs)

    return cast(Method, run)
