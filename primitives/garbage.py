"""Pausing Python's garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def none_collected() -> Iterator[None]:
    """Pauses the garbage collector, for imports: imported objects stay anyway, and scanning them and all of JAX takes a
    fifth of the import time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
