"""Checks the installation: what is installed, from where it is imported, what is missing, and how to get it.

Uses only the standard library, so that it works where something else can't be imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
"""The folder of the packages below."""
PACKAGES = (
    "zoo", "layers", "pallas_kernels", "primitives", "pictures", "suggestions", "tasks", "tokenization", "training",
)  # fmt: skip
# Optional packages: the extra that installs each, and what it is for.
OPTIONAL = {
    "matplotlib": ("plot", "pictures and the curve of a run"),
    "flatbuffers": ("export", "files of exported models"),
    "torch": ("torch", "weights in .pth, .pt and .bin files"),
    "tokenizers": ("reference", "tokenizer.json files"),
    "tensorflow": ("prepare", "preparing TFDS sets"),
}


def misplaced(packages: Iterable[str] = PACKAGES, home: Path = HOME) -> dict[str, str]:
    """Packages of this library that Python finds elsewhere than under ``home``, and where, because a folder of the user
    with the same name comes first on the path.
    """
    found = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or [str(spec.origin)])
        if [Path(place).resolve() for place in places] != [home / name]:
            found[name] = ", ".join(map(str, places)) or "nowhere"
    return found


def refuse_others(packages: Iterable[str] = PACKAGES, home: Path = HOME) -> None:
    """Checks that every package of this library is found under ``home``.

    Raises:
      ValueError: one is found elsewhere; the message says where, and what to do.
    """
    if others := misplaced(packages, home):
        places = "; ".join(f"{name} is {place}" for name, place in others.items())
        raise ValueError(
            f"{places}, not that of Mixer Zoo, which is under {home}: run the command in another folder, rename yours, "
            "or take it from PYTHONPATH"
        )


def requirements(home: Path = HOME) -> list[str]:
    """The requirements of the library, such as ``numpy>=2.0``: from pyproject.toml if it exists, else from the
    installed metadata.
    """
    project = home / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text())["project"]["dependencies"])
    try:
        listed = importlib.metadata.requires("mixer-zoo") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [requirement for requirement in listed if "extra ==" not in requirement]


def lacking(required: Iterable[str]) -> dict[str, str]:
    """The requirements that are not met, and what is installed instead."""
    found = {}
    for requirement in required:
        match = re.match(r"([\w.-]+)\s*(?:>=\s*([\w.]+))?", requirement)
        assert match is not None
        have, least = version(match[1]), match[2]
        if have is None:
            found[requirement] = "not installed"
        elif least and _numbers(have) < _numbers(least):
            found[requirement] = f"{have} is installed"
    return found


def version(package: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version; a pre-release counts as its release."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", text)[0]))  # type: ignore[index]


def caches() -> dict[str, Path]:
    """The directories where downloads, prepared data sets and compiled programs are stored."""
    home = Path.home() / ".cache"
    own = Path(os.environ.get("XDG_CACHE_HOME") or home)
    return {
        "compiled programs": Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", own / "mixer-zoo" / "compiled")),
        "weights of the hub": Path(
            os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or own / "huggingface") / "hub"
        ),
        "TFDS sets": Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"),
    }


def doctor() -> None:
    """Prints what is installed, the devices and the caches.

    Raises:
      ValueError: the installation can't work; the message says why, and what to do.
    """
    lines, faults = report()
    print("\n".join(lines))
    if faults:
        raise ValueError("\n  ".join(["the installation can't work:", *faults]))


def report() -> tuple[list[str], list[str]]:
    """Lines that describe the installation, and lines that describe its faults (none where there is no fault)."""
    lines = [f"Python {platform.python_version()}, {platform.platform()}", f"Mixer Zoo in {HOME}"]
    faults = [
        f"{name} is {place}, not {HOME / name}: rename that folder, or run elsewhere"
        for name, place in misplaced().items()
    ]
    required = requirements()
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in required]  # type: ignore[index]
    lines.append(", ".join(f"{name} {version(name)}" for name in names if version(name)))
    faults += [f'{need}: {has}; python -m pip install "{need}"' for need, has in lacking(required).items()]
    try:
        import jax

        lines += [f"device {device}" for device in jax.devices()]
    except Exception as error:  # of any type, from JAX or a driver
        faults.append(f"no device: {' '.join(str(error).split())}")
    lines += list(_accelerators(lines))
    for package, (extra, use) in OPTIONAL.items():
        have = version(package) or (version("tensorflow-cpu") if package == "tensorflow" else None)
        get = f"{package} is not installed ({use}): python -m pip install -e '.[{extra}]'"
        lines.append(f"{package} {have}" if have else get)
    lines += [f"{kind}: {_place(place)}" for kind, place in caches().items()]
    return lines, faults


def _accelerators(lines: list[str]) -> Iterator[str]:
    """A line with the remedy for a GPU that JAX does not use, if there is one."""
    if shutil.which("nvidia-smi") and not any(line.startswith("device cuda") for line in lines):
        yield 'an NVIDIA GPU is not used by JAX: python -m pip install -U "jax[cuda13]", and leave JAX_PLATFORMS unset'


def _place(path: Path) -> str:
    if not str(path) or str(path) == ".":
        return "kept nowhere"
    return f"{path}" if path.is_dir() else f"{path} (empty)"
