"""Where weights come from: files in the formats that weights are released in, the Hugging Face hub, and our own
checkpoints.

Every source becomes ``{name: Tensor}``, whose arrays are read one by one, on demand: a file larger
than memory, or sharded over several, is never held whole. No code of a checkpoint is ever run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from layers.initializers import aligned
from layers.lora import merged

Shape = tuple[int, ...]


class WeightsError(ValueError):
    """Weights can't be loaded or saved; the message names the fault and the remedy. The model is unchanged."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that has not been read yet; ``read`` returns a new array that nothing else references."""

    shape: Shape
    read: Callable[[], np.ndarray]


Tensors = dict[str, Tensor]

_SAFETENSORS = {
    **{
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "BOOL": np.bool_,
        "C64": np.complex64,
    },
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2},
    **{
        f"{sign}{bits}": np.dtype(f"{kind}{bits}")
        for sign, kind in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}

_HUB = re.compile(r"hf://(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")
# In the order of preference; an index names the files of a sharded checkpoint.
_STEMS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "teacher", "weights")


def open_source(source: str | Path) -> Tensors:
    """The tensors of a file, a folder or ``hf://owner/name[@revision][/file]``.

    Raises:
      WeightsError: it is missing, can't be reached, is damaged, or is of no known format.
    """
    if match := _HUB.fullmatch(str(source)):
        return _hub(**match.groupdict())
    if re.match(r"(?!hf)\w+://", str(source)):
        raise WeightsError(
            f"weights are not fetched from {source}: download the file and give its path, or give "
            f"hf://owner/name[@revision][/file]"
        )
    path = Path(source)
    if not path.exists():
        raise WeightsError(
            f"there are no weights at {source}: neither a file, nor a folder, nor hf://owner/name[@revision][/file]"
        )
    return _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> Tensors:
    readers = {".safetensors": _safetensors, ".npz": _npz, **dict.fromkeys((".pth", ".pt", ".bin"), _torch)}
    if path.name.endswith(".index.json"):
        return _index(path, lambda name: path.parent / name)
    if path.suffix not in readers:
        raise WeightsError(f"{path} is of no format that weights are read from: {', '.join(readers)}, or a folder")
    try:
        return readers[path.suffix](path)
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path} is damaged or cut short ({_first_line(error)}): get it again") from error


def _safetensors(path: Path) -> Tensors:
    """The format is a length, a header in JSON and the arrays' bytes. These are read, not memory-mapped, so that memory
    does not hold both the file's pages and a copy of them."""
    from safetensors import safe_open

    safe_open(path, framework="np")  # checks the header
    with path.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(start - 8))

    def reader(dtype: str, shape: Shape, offset: int) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            array = aligned(shape, _SAFETENSORS[dtype])
            with path.open("rb") as stream:
                stream.seek(start + offset)
                if stream.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
                    raise WeightsError(f"{path} is cut short: get it again")
            return array

        return read

    header.pop("__metadata__", None)
    unknown = sorted({line["dtype"] for line in header.values()} - set(_SAFETENSORS))
    if unknown:
        raise WeightsError(f"{path} holds arrays of {', '.join(unknown)}, which NumPy does not have")
    return {
        name: Tensor(tuple(line["shape"]), reader(line["dtype"], tuple(line["shape"]), line["data_offsets"][0]))
        for name, line in header.items()
    }


def _npz(path: Path) -> Tensors:
    archive = zipfile.ZipFile(path)
    found = {}
    for member in archive.namelist():
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape = header(stream)[0]
        found[member.removesuffix(".npy")] = Tensor(tuple(shape), _npz_reader(path, archive, member))
    return found


def _npz_reader(path: Path, archive: zipfile.ZipFile, member: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        try:
            with archive.open(member) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
        except Exception as error:
            raise WeightsError(
                f"{path} is damaged or cut short in {member} ({_first_line(error)}): get it again"
            ) from error
        # NumPy has no bfloat16 of its own and writes it as two raw bytes.
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array

    return read


def _torch(path: Path) -> Tensors:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"reading {path.name} needs PyTorch: pip install 'mixer-zoo[torch]', or convert the file to .safetensors"
        ) from None
    import pickle

    with path.open("rb") as stream:
        start = stream.read(2)
    if start not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise WeightsError(
            f"{path} is damaged or cut short (neither a zip archive nor a pickle: it begins with {start!r}): get it "
            f"again"
        )
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Unsupported" not in str(error):
            raise
        cause = (
            next(
                (line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line),
                _first_line(error),
            )
            .strip()
            .split(". ")[0]
        )
        raise WeightsError(
            f"{path} holds more than weights and would run code when loaded ({cause}): refused; ask its source for "
            f".safetensors"
        ) from None
    arrays = _peel(content)
    if not arrays:
        raise WeightsError(f"{path} holds no dictionary of tensors, plain or under {', '.join(_WRAPPERS)}")

    def reader(tensor: Any) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            whole = tensor.detach().contiguous()
            array = (
                whole.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
                if whole.dtype == torch.bfloat16
                else whole.numpy()
            )
            return np.array(array)  # a copy, which does not keep the file's pages

        return read

    return {name: Tensor(tuple(tensor.shape), reader(tensor)) for name, tensor in arrays.items()}


def _harmless() -> list[Any]:
    """Types of pure data that training scripts store with tensors: command-line options, and NumPy scalars and
    arrays."""
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    makers = (multiarray.scalar, multiarray._reconstruct)
    named = [
        (maker, f"numpy.{core}.multiarray.{maker.__name__}") for maker in makers for core in ("core", "_core")
    ]  # NumPy 1 and 2
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    return [argparse.Namespace, np.ndarray, np.dtype, *kinds, *named]


def _peel(content: Any) -> dict[str, Any]:
    """The dictionary of tensors inside training scripts' wrappers; running averages are preferred to raw weights."""
    if not isinstance(content, Mapping):
        return {}
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping) and (inner := _peel(content[wrapper])):
            return inner
    return {name: value for name, value in content.items() if hasattr(value, "detach")}


def _folder(path: Path) -> Tensors:
    """The tensors of a model's folder as on the hub, or of a training run's working directory or checkpoint."""
    for stem in _STEMS:
        if (path / stem).exists():
            return _file(path / stem)
    steps = [
        (int(p.name), p)
        for parent in (path / "checkpoints", path)
        if parent.is_dir()
        for p in parent.iterdir()
        if p.name.isdecimal() and p.is_dir()
    ]
    for folder in (max(steps)[1] if steps else path, path):
        if (folder / "weights").is_dir():
            return _without_adapters(_orbax(folder / "weights"), folder)
        if (folder / "_METADATA").exists():
            return _without_adapters(_orbax(folder), folder)
    raise WeightsError(f"the folder {path} holds neither {', '.join(_STEMS)} nor a checkpoint of a training run")


def file_beside(source: Any, name: str) -> str | None:
    """The text of the file ``name`` in a folder of weights, next to a file, or in a repository of the hub; None where
    there is none."""
    if not isinstance(source, str | Path):
        return None
    if match := _HUB.fullmatch(str(source)):
        import huggingface_hub
        from huggingface_hub import errors

        try:
            with _quiet(huggingface_hub.logging):
                return Path(
                    huggingface_hub.hf_hub_download(match["repository"], name, revision=match["revision"])
                ).read_text()
        except (OSError, errors.HfHubHTTPError):
            return None  # the weights could be reached, so the repository has no such file
    if not (path := Path(source)).exists() or _of_run(source, RECORD) is not None:
        return None
    path = (path if path.is_dir() else path.parent) / name
    return path.read_text() if path.is_file() else None


RECORD = "model.json"
"""The file in a run's working directory that says what its model is, so that the run can be used without its data."""
TOKENIZER = "tokenizer.json"
"""The copy of the tokenizer's file in a run's working directory, if the run has a tokenizer."""


def run_record(source: Any) -> dict[str, Any] | None:
    """What a training run stored about its model, if ``source`` is its working directory or a checkpoint inside, or
    what :mod:`zoo.publishing` wrote to a folder or to the hub; else None.

    Returns:
      "model" (the variant), "options" (hyper-parameters), "class_names", "preprocess" (fields of
      :class:`zoo.Preprocess`) and "tokenizer" (options of ``tokenization.create``); the last three only if the model
      has them.

    Raises:
      WeightsError: the record is damaged, or the source is an empty string, which would be the current folder.
    """
    if source == "":
        raise WeightsError("weights= is empty: give a file, a folder or a name, or leave it out for random ones")
    path = _of_run(source, RECORD)
    text = path.read_text() if path is not None else file_beside(source, RECORD) if on_hub(source) else None
    if text is None:
        return None
    try:
        record = dict(json.loads(text))
        record["model"], record["options"] = str(record["model"]), dict(record["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path or f'{source}/{RECORD}'} is damaged ({_first_line(error)}): delete it and name the model and its "
            "options yourself"
        ) from error
    return record


def run_tokenizer(source: Any) -> dict[str, Any] | None:
    """Options of ``tokenization.create`` for the model that :func:`run_record` describes; None if it has no
    tokenizer."""
    stored = (run_record(source) or {}).get("tokenizer")
    if stored is not None:
        return {**stored, "path": _stored_tokenizer(source)} if stored.get("path") == TOKENIZER else dict(stored)
    path = _of_run(source, "config.json") if _of_run(source, RECORD) else None
    task = {} if path is None else json.loads(path.read_text()).get("task", {})
    if "tokenizer" not in task:
        return None
    path = _of_run(source, TOKENIZER)  # runs of older versions only name the file that they read
    named = {
        "path": str(path) if path else task["tokenizer"],
        "separator": task.get("separator"),
        "special_tokens": task.get("special_tokens"),
    }
    return {option: value for option, value in named.items() if value}


def _stored_tokenizer(source: Any) -> str:
    """The path of the tokenizer's file next to a record."""
    if not on_hub(source):
        return str(_of_run(source, TOKENIZER))
    import huggingface_hub

    match = _HUB.fullmatch(str(source))
    assert match is not None
    return huggingface_hub.hf_hub_download(match["repository"], TOKENIZER, revision=match["revision"])


def on_hub(source: Any) -> bool:
    """Whether weights are of the form ``hf://owner/name[@revision][/file]``."""
    return isinstance(source, str) and _HUB.fullmatch(source) is not None


def _of_run(source: Any, name: str) -> Path | None:
    """The path of a file in a run's working directory, where ``source`` is that directory or a checkpoint inside; else
    None."""
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return None
    folder = Path(source).absolute()
    return next((parent / name for parent in (folder, *folder.parents[:3]) if (parent / name).is_file()), None)


def _orbax(path: Path) -> Tensors:
    """Weights that a training run saved: its running average if it kept one, else its parameters; and its
    statistics."""
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore(path.absolute())
    except Exception as error:
        raise WeightsError(f"the checkpoint {path} is damaged ({_first_line(error)}): use another step's") from error
    flat = {name: array for name, array in _dotted(arrays).items() if np.ndim(array) or np.size(array)}
    chosen: dict[str, Any] = {}
    for group in ("params.", "statistics.", "ema."):
        chosen |= {name.removeprefix(group): array for name, array in flat.items() if name.startswith(group)}
    chosen = chosen or flat
    return {name: Tensor(np.shape(array), functools.partial(np.asarray, array)) for name, array in chosen.items()}


def _without_adapters(tensors: Tensors, folder: Path) -> Tensors:
    """The tensors of a plain model: adapters that a run trained are added to their kernels, scaled as in the run's
    config."""
    layers = [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]
    if not layers:
        return tensors
    record = next(
        (parent / "config.json" for parent in folder.absolute().parents if (parent / "config.json").is_file()), None
    )
    if record is None:
        raise WeightsError(
            f"{folder} holds adapters, whose scale is in the config.json of their run: leave the checkpoint in its "
            f"working directory"
        )
    lora = json.loads(record.read_text())["lora"]
    scale = (lora["alpha"] or lora["rank"]) / lora["rank"]
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith((".lora_a", ".lora_b"))}

    def reader(kernel: Tensor, a: Tensor, b: Tensor) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(merged(kernel.read(), a.read(), b.read(), scale))

    for layer in layers:
        kernel, a, b = (tensors[f"{layer}.{leaf}"] for leaf in ("kernel", "lora_a", "lora_b"))
        plain[f"{layer}.kernel"] = Tensor(kernel.shape, reader(kernel, a, b))
    return plain


def _dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        name: array
        for key, value in tree.items()
        for name, array in _dotted(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _index(path: Path, locate: Callable[[str], Path]) -> Tensors:
    """The tensors of a checkpoint in several files, each opened when it is first needed."""
    try:
        files = dict(json.loads(path.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is not the index of a sharded checkpoint ({_first_line(error)}): get it again"
        ) from error
    # An index is as untrusted as the weights that it comes with: it may not name files in other folders.
    if away := [file for file in files.values() if file in ("", "..") or file != Path(str(file)).name]:
        raise WeightsError(f"{path} names {away[0]!r}, which is no file beside it: only such are read")
    opened: dict[str, Tensors] = {}
    found = {}
    for name, file in files.items():
        if file not in opened:
            opened[file] = open_source(locate(file))
        if name not in opened[file]:
            raise WeightsError(f"{path} places {name} in {file}, which does not hold it: get both again")
        found[name] = opened[file][name]
    return found


def _hub(repository: str, revision: str | None, file: str | None) -> Tensors:
    import huggingface_hub
    from huggingface_hub import errors

    offline = False

    def fetch(name: str) -> Path:
        with _quiet(huggingface_hub.logging):
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=offline))

    where = f"hf://{repository}{f'@{revision}' if revision else ''}"
    for name in (file,) if file else _STEMS:
        try:
            path = fetch(name)
        except errors.LocalEntryNotFoundError as error:
            # Without a network a file may be missing only from the cache. Another of the names may be there, so look
            # for the rest in the cache alone.
            offline = True
            if name == (file or _STEMS[-1]):
                cache = huggingface_hub.constants.HF_HUB_CACHE
                raise WeightsError(
                    f"{where} can't be reached and {file or 'a file of weights'} is not in the cache {cache}: connect "
                    f"and unset HF_HUB_OFFLINE, or give a file"
                ) from error
            continue
        except errors.EntryNotFoundError:
            continue
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
            raise WeightsError(f"the hub has no {where}, or it needs a login ({discreet(error)})") from None
        except (OSError, errors.HfHubHTTPError) as error:
            raise WeightsError(f"{where} can't be reached ({discreet(error)}): connect, or give a file") from None
        return _index(path, fetch) if name.endswith(".index.json") else _file(path)
    raise WeightsError(f"{where} has no {file or 'file named ' + ', '.join(_STEMS)}: name one as {where}/FILE")


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silences the hub's log: without a network every attempt would be logged."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def discreet(error: BaseException, token: str | None = None) -> str:
    """The first line of the hub's error, without ``token`` or the user's own. The error itself may hold the request and
    its headers, so it is not passed on.
    """
    import huggingface_hub

    token = token or huggingface_hub.get_token()
    return _first_line(error).replace(token, "...") if token else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].split('. ')[0][:200]}" if lines else type(error).__name__
