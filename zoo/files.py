"""Writing files, whole or not at all; arrays are written in C order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_arrays(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Replaces ``path`` (.safetensors or .npz) by a file of ``arrays``; the old file is kept if writing fails.

    Arrays from an accelerator may have another memory layout, and safetensors 0.8 writes the memory as it is under the
    array's logical shape. So all arrays are brought into C order here.

    Args:
      metadata: text stored with the arrays of a .safetensors file; .npz can't hold it.

    Raises:
      OSError: the file can't be written.
    """
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}

    def write(temporary: Path) -> None:
        if path.suffix == ".npz":
            with temporary.open("wb") as stream:
                np.savez(stream, **ordered)  # type: ignore[arg-type]
        else:
            from safetensors.numpy import save_file

            save_file(ordered, temporary, metadata=dict(metadata))

    _replace(path, write)


def write_file(path: Path, data: bytes) -> None:
    """Replaces ``path`` by a file of ``data``; the old file is kept if writing fails.

    Raises:
      OSError: the file can't be written.
    """
    _replace(path, lambda temporary: temporary.write_bytes(data))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets ``write`` write a temporary file beside ``path``, which then replaces it.

    Raises:
      OSError: it can't be written, its folder does not exist, or ``path`` is a folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in: make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
