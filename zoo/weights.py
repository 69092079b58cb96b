"""Loading and saving pretrained weights, under their authors' names.

``load`` detects the naming that a file was written under, checks every name and shape, and only then changes the model;
``save`` writes the authors' names. An architecture's ``RULES`` say how names and layouts correspond
(:mod:`zoo.naming`); where files come from is :mod:`zoo.sources`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.initializers import aligned
from layers.lora import adapters
from layers.quantized import format_of
from layers.stack import Stack
from layers.state import assign, flatten
from suggestions import near
from zoo.descriptions import Description, describe
from zoo.files import write_arrays
from zoo.matching import Form, Match, best_match, match_file, misfit, namings, source_name
from zoo.naming import Tie
from zoo.plan import Entry, plan
from zoo.quantization import joined, placed, put, stored
from zoo.registry import FrozenOptions, Release, Variant, abstract, variant
from zoo.sources import Tensor, Tensors, WeightsError, open_source, run_record, run_tokenizer


def load(
    model: nnx.Module,
    source: str | Path | Mapping[str, Any],
    *,
    head: Literal["reset"] | None = None,
    naming: str | None = None,
    dtype: Any = None,
) -> nnx.Module:
    """Loads weights into ``model``, in place, and returns it, in evaluation mode.

    Args:
      model: made by ``zoo.create``.
      source: a file (.safetensors, .npz, .pth, .pt, .bin), a folder (as on the hub, or of a training
        run), ``hf://owner/name[@revision][/file]``, the name of a released checkpoint of this model
        ("in1k"), or a dictionary of arrays.
      head: "reset" leaves the classifier as it is and takes none from the file.
      naming: the naming of the file; None detects it.
      dtype: of the loaded parameters: None keeps the model's, "file" the file's; another one is cast to.

    Raises:
      WeightsError: an unknown or unreadable source, or missing, unexpected or mis-shaped tensors (all are listed). The
        model is unchanged.
    """
    return load_keeping(model, source, (), head=head, naming=naming, dtype=dtype)


def load_keeping(
    model: nnx.Module,
    source: str | Path | Mapping[str, Any],
    keep: Iterable[str],
    *,
    head: str | None = None,
    naming: str | None = None,
    dtype: Any = None,
) -> nnx.Module:
    """As :func:`load`, but the fields ``keep`` of the model's configuration stay, whatever the description next to the
    weights says."""
    if head not in (None, "reset"):
        raise WeightsError(f'head is None or "reset", got {head!r}')
    if dtype not in (None, "file"):
        try:
            jnp.dtype(dtype)
        except TypeError as error:
            raise WeightsError(
                f'dtype is None, "file", or the name of a dtype, as "bfloat16"; got {dtype!r}'
            ) from error
    made: Any = model
    if (kept := format_of(model)) is not None:
        raise WeightsError(f"the model's weights are {kept}: load into one that zoo.create makes")
    entry = variant(made.variant)
    release, tensors = _tensors(entry, source)
    described = Description() if release is not None else describe(entry, source)
    match = match_file(
        model,
        entry,
        tensors,
        naming,
        head,
        {field: value for field, value in described.fields.items() if field not in keep},
    )
    if match.faults:
        raise WeightsError(misfit(model, entry, match, source))
    _warn_of(made, described, source, keep)
    arrays = dict(_read(model, match, dtype, source))
    for part in getattr(model, "before_head", ()):
        if getattr(match.form.parts, part) is not None and not any(name.startswith(f"{part}.") for name in arrays):
            warnings.warn(f"{source_name(source)} has no {part}: the model's stays random", stacklevel=3)
    _adopt(model, entry, match.form, source, bool(described.fields))
    assign(model, put(model, arrays))
    model.eval()
    if described.class_names and head is None and len(described.class_names) == getattr(made.config, "num_classes", 0):
        made.class_names = described.class_names
    if described.preprocess:
        made.released = FrozenOptions(described.preprocess)
    if (record := run_record(source)) is not None:
        made.class_names = tuple(record["class_names"]) if record.get("class_names") else None
        made.released = FrozenOptions(record["preprocess"]) if record.get("preprocess") else made.released
        options = run_tokenizer(source)
        made.tokenizer = None if options is None else FrozenOptions(options)
    if release is not None:
        made.released = FrozenOptions(release.preprocess)
    return model


def save(model: nnx.Module, path: str | Path, *, naming: str | None = None) -> None:
    """Writes the model's weights to a ``.safetensors`` file (or ``.npz``, where the naming is JAX's).

    Args:
      model: made by ``zoo.create``.
      path: of the file; replaced as a whole or not at all.
      naming: the naming to write; default: the architecture's first (its authors' or timm's). "zoo" is our own, the
        only one, and the default, for a quantized model.

    Raises:
      WeightsError: an unknown naming, parameters that it has no name for, an unknown suffix, or a quantized model under
        other names than ours.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise WeightsError(f"weights are saved as .safetensors or .npz, got {path.name}")
    # Without this metadata transformers refuses the file.
    kept = format_of(model)
    write_arrays(path, export(model, naming=naming), {"format": "pt"} | ({} if kept is None else {"quantized": kept}))


def export(model: nnx.Module, *, naming: str | None = None) -> dict[str, np.ndarray]:
    """The model's weights under released names, in released layouts.

    Raises:
      WeightsError: an unknown naming, or parameters that it has no name for.
    """
    made: Any = model
    entry = variant(made.variant)
    names = namings(entry)
    kept = format_of(model)
    chosen = ("zoo" if kept else next(iter(names))) if naming is None else naming
    if chosen not in names:
        raise WeightsError(f"{entry.family} has no naming {naming!r}{near(chosen, names)}; it has: {', '.join(names)}")
    if chosen != "zoo" and adapters(model):
        remedy = "zoo.merge_lora(model) puts them into its weights, zoo.save_adapters(model, path) saves them alone"
        raise WeightsError(f"the model has adapters, for which no released file has names: {remedy}")
    if kept is not None:
        if chosen != "zoo":
            raise WeightsError(f'the model\'s weights are {kept}, for which {chosen!r} has no names: naming="zoo"')
        return stored(model)
    leaves = flatten(model)
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    form = Form(
        model,
        entry,
        {field: value for field, value in names[chosen].config.items() if getattr(made.config, field) != value},
    )
    added = {
        name: shape for name, shape in form.shapes.items() if name not in leaves and name.split(".")[0] in made.neutral
    }
    arrays |= {name: np.zeros(shape, made.config.param_dtype) for name, shape in added.items()}
    try:
        if strays := [name for name in leaves if form.shapes.get(name) != leaves[name].shape]:
            raise ValueError(f"such files hold no {', '.join(strays)}")
        entries = plan(names[chosen], form.shapes, form.config)
    except ValueError as error:
        raise WeightsError(
            f'this model can\'t be saved under the names of {chosen!r}: {error}; naming="zoo" saves any model'
        ) from error
    return {name: np.asarray(array, order="C") for line in entries for name, array in line.export(arrays).items()}


def classes_of(name: str, source: str | Path | Mapping[str, Any], config: Any) -> int | None:
    """Number of classes of a checkpoint for the model ``name``; None if it has no head or the number is unknown."""
    entry = variant(name)
    _, tensors = _tensors(entry, source)
    model = abstract(entry, dataclasses.replace(config, num_classes=config.num_classes or 1))
    match = best_match(model, entry, tensors, None)
    names = ("head.bias", "head.out.bias", "head.kernel")
    head = {
        line.ours[0]: match.tensors.get(line.released[0])
        for line in match.entries
        if line.ours and line.ours[0] in names
    }
    # The only heads without a bias are PyTorch's, whose kernels have the classes as first axis.
    array = head.get(next((name for name in names if name in head), ""))
    return None if array is None or not array.shape else array.shape[0]


def _tensors(entry: Variant, source: str | Path | Mapping[str, Any]) -> tuple[Release | None, Tensors]:
    if not isinstance(source, str | Path | Mapping):
        raise WeightsError(
            f"weights are a path, the name of a released checkpoint, or a dictionary of arrays; got "
            f"{type(source).__name__}"
        )
    if isinstance(source, Mapping):
        return None, joined(
            {name: Tensor(np.shape(array), functools.partial(np.array, array)) for name, array in source.items()}
        )
    if isinstance(source, str) and not Path(source).exists() and "/" not in source and "." not in source:
        release = entry.release(source)
        if release is None:
            known = ", ".join(entry.releases) or "none"
            guess = near(source, entry.releases)
            raise WeightsError(
                f"unknown weights {source!r}{guess}; it is no file, and the released checkpoints of {entry.name} are: "
                f"{known}"
            )
        return release, joined(open_source(release.source))
    return None, joined(open_source(source))


def _read(model: Any, match: Match, dtype: Any, source: Any) -> Iterator[tuple[str, Any]]:
    """Our arrays one by one, on their devices and in their final dtype."""
    leaves = flatten(model)
    tables: dict[str, Any] = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    resampled: dict[tuple[str, str], list[str]] = {}
    for line in match.entries:
        if line.computed:
            _check_computed(line, match.tensors, source)
        if not line.ours:
            continue
        held = [n for n in line.released if n in match.tensors]
        try:
            arrays = line.load([match.tensors[n].read() for n in held])
        except WeightsError:
            raise
        except Exception as error:
            remedy = (
                ": make the model with tied=False"
                if getattr(model.config, "tied", False) and any(isinstance(op, Tie) for op in line.operations)
                else ""
            )
            raise WeightsError(f"{', '.join(held)} of {source_name(source)} can't be read: {error}{remedy}") from error
        for name, array in arrays.items():
            leaf = leaves.get(name)
            if (packed := placed(name, array, leaf)) is not None:
                yield name, packed
                continue
            shape = array.shape if leaf is None else leaf.shape
            if array.dtype.kind in "iub":
                raise WeightsError(
                    f"{', '.join(held)} of {source_name(source)} holds integers ({array.dtype}), as quantized weights "
                    "of other libraries do, whose scales are not read here: get the floating point weights"
                )
            if array.ndim == 4 and array.shape[2] != shape[2]:
                what = f"{name} was made for images of {array.shape[2]} channels and is adapted to {shape[2]}"
                warnings.warn(what, stacklevel=3)
                array = _recolored(array, shape[2])
            if array.shape != shape:
                resampled.setdefault((_by(array.shape), _by(shape)), []).append(name)
                array = np.asarray(tables[name.rpartition(".")[0]].resampled(jnp.asarray(array), shape[:2]))
            wanted = (
                array.dtype
                if dtype == "file"
                else leaf.dtype
                if dtype is None and leaf is not None
                else jnp.dtype(dtype or array.dtype)
            )
            if array.dtype != wanted or not array.flags.c_contiguous or array.ctypes.data % 64:
                array, released = aligned(array.shape, wanted), array
                array[...] = released
            yield name, jax.device_put(array, getattr(leaf, "sharding", None))
    for (made_for, wanted_grid), (first, *others) in resampled.items():
        which = f"{first} and {len(others)} more tables were" if others else f"{first} was"
        warnings.warn(
            f"{which} made for a grid of {made_for} and {'are' if others else 'is'} resampled to {wanted_grid}",
            stacklevel=4,
        )


def _recolored(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts a kernel (height, width, 3, features) on colors to ``channels`` channels, as timm does: one channel gets
    the sum over colors, which gives a gray image the same output; more channels get the colors in turn, scaled by 3 /
    channels."""
    wide = kernel.astype(np.float32)
    if channels == 1:
        return wide.sum(axis=2, keepdims=True)
    return wide[:, :, np.arange(channels) % kernel.shape[2]] * np.float32(kernel.shape[2] / channels)


def _check_computed(line: Entry, tensors: Tensors, source: Any) -> None:
    """Refuses a file whose constant differs from what the model computes, if both have the same shape."""
    (name,), value = line.released, line.constant
    if value is None or name not in tensors or tensors[name].shape != value.shape:
        return
    # Integers match exactly; another library's logarithm may differ in its last bit.
    if not np.allclose(tensors[name].read(), value, rtol=1e-5, atol=1e-6):
        raise WeightsError(
            f"{name} of {source_name(source)} is not what the model computes: it is a constant, and the file holds "
            "other values"
        )


def _warn_of(model: Any, described: Description, source: Any, keep: Iterable[str]) -> None:
    """Warns about what the description next to the weights says and is not applied."""
    theirs = described.fields
    differ = [field for field in keep if field in theirs and theirs[field] != getattr(model.config, field)]
    if others := [f"{field}={theirs[field]!r}" for field in differ]:
        warnings.warn(f"config.json of {source} has {', '.join(others)}: what was asked for is kept", stacklevel=4)
    for file, entries in described.unread.items():
        warnings.warn(f"{file} of {source} has {entries}, which is not compared with {model.variant}", stacklevel=4)


def _adopt(model: Any, entry: Variant, form: Form, source: Any, described: bool) -> None:
    """Adds the parts that the file has in addition or in another form, removes those that files of its naming lack, and
    warns."""
    if form.parts is model:
        return
    if described:
        _restate(model, abstract(entry, form.config))
    ours, theirs = _parts(flatten(model)), _parts(form.shapes)
    for part in ours.keys() - theirs.keys():
        setattr(model, part, None)
    for part in (part for part, names in theirs.items() if names != ours.get(part)):
        setattr(model, part, nnx.data(getattr(form.parts, part)))  # its arrays are assigned next
    if form.config.shared and getattr(form.config, "depth", None) != getattr(model.config, "depth", None):
        options = {"reductions": model.blocks.reduced_after, "remat": form.config.remat, "scan": form.config.scan}
        model.blocks = Stack([model.blocks[0]] * form.config.depth, **options)
    changed = [f"{name}={value!r}" for name, value in vars(form.config).items() if value != getattr(model.config, name)]
    warnings.warn(
        f"{source_name(source)} holds a model with {', '.join(changed)}: this one has become such a model", stacklevel=4
    )
    model.config = form.config


def _restate(model: nnx.Module, other: nnx.Module) -> None:
    """Copies to the modules of ``model`` the settings of those of ``other``: epsilons, activations, numbers of
    heads."""
    ours = dict(nnx.iter_modules(model))
    for path, theirs in nnx.iter_modules(other):
        for name, value in vars(theirs).items():
            given = vars(ours[path]).get(name) if path in ours else value
            if (
                not name.startswith("_")
                and value != given
                and (_is_setting(value) or (value is None and _is_setting(given)))
            ):
                setattr(ours[path], name, value)


def _is_setting(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple) or (
        callable(value) and not isinstance(value, nnx.Pytree | nnx.Variable)
    )


def _parts(names: Iterable[str]) -> dict[str, set[str]]:
    """Names of the arrays of each part."""
    parts: dict[str, set[str]] = collections.defaultdict(set)
    for name in names:
        parts[name.split(".")[0]].add(name)
    return parts


def _by(shape: Iterable[int]) -> str:
    return "x".join(str(size) for size in tuple(shape)[:2])
