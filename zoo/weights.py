"""Loading and saving pretrained weights, under their authors' names.

``load`` finds out under which naming a file was written, checks every name and shape, and only then
changes the model; ``save`` writes the authors' names. An architecture's ``RULES`` say how names and
layouts correspond (:mod:`zoo.naming`); where files come from is :mod:`zoo.sources`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
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
from layers.stack import Stack
from layers.state import assign, flatten
from suggestions import near
from zoo.descriptions import Description, describe
from zoo.files import write_arrays
from zoo.naming import ZOO, Entry, Naming, Tie, plan
from zoo.registry import FrozenOptions, Release, Variant, abstract, list_models, variant
from zoo.sources import Tensor, Tensors, WeightsError, open_source, run_record, run_tokenizer

# Prefixes that trainers and larger models add to the names of all tensors, or of one tower's.
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.", "params/", "opt/target/")
_TOWERS = ("params/img/", "visual.trunk.")


class Form:
    """A model as some files hold it: with parts beyond those it has, or without some.

    Attributes:
      config: its configuration.
      parts: the model, or an abstract one of that configuration but for the number of its blocks: they are the model's.
      shapes: of all its arrays, by name.
    """

    def __init__(self, model: Any, entry: Variant, beyond: Mapping[str, Any]):
        """``beyond``: the fields of the configuration that differ from the model's."""
        self.config, self.parts = dataclasses.replace(model.config, **beyond), model
        leaves = flatten(model)
        if beyond:
            few = {"depth": 1} if hasattr(self.config, "depth") else {}
            self.parts = abstract(entry, dataclasses.replace(self.config, **few))
            blocks = {name: leaf for name, leaf in leaves.items() if few and name.startswith("blocks.")}
            leaves = {
                **{
                    name: leaf
                    for name, leaf in flatten(self.parts).items()
                    if not few or not name.startswith("blocks.")
                },
                **blocks,
            }
        self.shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}


@dataclasses.dataclass
class Match:
    """A file read as one naming.

    Attributes:
      name: of the naming.
      form: the model as files of this naming hold it.
      entries: the plan for it.
      tensors: the file's, with names as in the naming.
      missing, unexpected: released names; misshaped: what is wrong with which.
    """

    name: str
    form: Form
    entries: list[Entry]
    tensors: Tensors
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)

    @property
    def fits(self) -> int:
        """How many of the file's tensors have their place in the model."""
        return len(self.tensors) - len(self.unexpected) - len(self.misshaped)


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
      naming: under which names; None finds out.
      dtype: None keeps that of the model's parameters, "file" the file's; else cast to it.

    Raises:
      WeightsError: unknown or unreadable source, or missing, unexpected or mis-shaped tensors (all are
        listed). The model is unchanged.
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
    """As :func:`load`, for a model that keeps the fields ``keep`` of its configuration whatever the description next to
    the weights says."""
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
    entry = variant(made.variant)
    release, tensors = _tensors(entry, source)
    described = Description() if release is not None else describe(entry, source)
    match = _match(
        model,
        entry,
        tensors,
        naming,
        head,
        {field: value for field, value in described.fields.items() if field not in keep},
    )
    if match.faults:
        raise WeightsError(_report(model, entry, match, source))
    _warn_of(made, described, source, keep)
    arrays = dict(_read(model, match, dtype, source))
    for part in getattr(model, "before_head", ()):
        if getattr(match.form.parts, part) is not None and not any(name.startswith(f"{part}.") for name in arrays):
            warnings.warn(f"{_told(source)} has no {part}: the model's stays random", stacklevel=3)
    _adopt(model, entry, match.form, source, bool(described.fields))
    assign(model, arrays)
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
      naming: under which names; default the architecture's first (its authors' or timm's), "zoo" for ours.

    Raises:
      WeightsError: an unknown naming, parameters that it has no name for, or another suffix.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise WeightsError(f"weights are saved as .safetensors or .npz, got {path.name}")
    # Without this metadata transformers refuses the file.
    write_arrays(path, export(model, naming=naming), {"format": "pt"})


def export(model: nnx.Module, *, naming: str | None = None) -> dict[str, np.ndarray]:
    """The model's weights under released names, in released layouts.

    Raises:
      WeightsError: an unknown naming, or parameters that it has no name for.
    """
    made: Any = model
    entry = variant(made.variant)
    names = _namings(entry)
    chosen = next(iter(names)) if naming is None else naming
    if chosen not in names:
        raise WeightsError(f"{entry.family} has no naming {naming!r}{near(chosen, names)}; it has: {', '.join(names)}")
    if chosen != "zoo" and adapters(model):
        remedy = "zoo.merge_lora(model) puts them into its weights, zoo.save_adapters(model, path) saves them alone"
        raise WeightsError(f"the model has adapters, for which no released file has names: {remedy}")
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
    """Number of classes of a checkpoint for the model ``name``; None where it has no head or the number is unknown."""
    entry = variant(name)
    _, tensors = _tensors(entry, source)
    model = abstract(entry, dataclasses.replace(config, num_classes=config.num_classes or 1))
    match = _best(model, entry, tensors, None)
    head = {
        line.ours[0]: match.tensors.get(line.released[0])
        for line in match.entries
        if line.ours and line.ours[0] in ("head.bias", "head.kernel")
    }
    # The only heads without a bias are PyTorch's, whose kernels begin with the classes.
    array = head.get("head.bias" if "head.bias" in head else "head.kernel")
    return None if array is None or not array.shape else array.shape[0]


def _namings(entry: Variant) -> dict[str, Naming]:
    return {**entry.rules, "zoo": ZOO}


def _tensors(entry: Variant, source: str | Path | Mapping[str, Any]) -> tuple[Release | None, Tensors]:
    if not isinstance(source, str | Path | Mapping):
        raise WeightsError(
            f"weights are a path, the name of a released checkpoint, or a dictionary of arrays; got "
            f"{type(source).__name__}"
        )
    if isinstance(source, Mapping):
        return None, {
            name: Tensor(np.shape(array), functools.partial(np.array, array)) for name, array in source.items()
        }
    if isinstance(source, str) and not Path(source).exists() and "/" not in source and "." not in source:
        release = entry.release(source)
        if release is None:
            known = ", ".join(entry.releases) or "none"
            guess = near(source, entry.releases)
            raise WeightsError(
                f"unknown weights {source!r}{guess}; it is no file, and the released checkpoints of {entry.name} are: "
                f"{known}"
            )
        return release, open_source(release.source)
    return None, open_source(source)


def _heads(model: nnx.Module) -> tuple[str, ...]:
    return getattr(model, "heads", ("head",))


def _match(
    model: Any, entry: Variant, tensors: Tensors, naming: str | None, head: str | None, described: Mapping[str, Any]
) -> Match:
    if naming is not None and naming not in _namings(entry):
        raise WeightsError(
            f"{entry.family} has no naming {naming!r}{near(naming, _namings(entry))}; it has: "
            f"{', '.join(_namings(entry))}"
        )
    return _best(model, entry, tensors, naming, reset=head == "reset", described=described)


def _best(
    model: Any,
    entry: Variant,
    tensors: Tensors,
    naming: str | None,
    *,
    reset: bool = False,
    described: Mapping[str, Any] | None = None,
) -> Match:
    """The naming, and the prefix to take off, under which the file fits the model best: the one that knows most of its
    names.
    """
    readings: dict[int, list[tuple[str, Naming, Tensors]]] = collections.defaultdict(list)
    for name, rules in _namings(entry).items():
        if naming in (None, name):
            for renamed in _renamings(tensors, rules):
                readings[_known(model, rules, renamed)].append((name, rules, renamed))
    forms: dict[Any, Form] = {}
    for count in sorted(readings, reverse=True):
        found: list[Match] = []
        for name, rules, renamed in readings[count]:
            beyond = _beyond(model, rules, renamed, reset, described or {})
            form = forms[beyond] = forms.get(beyond) or Form(model, entry, dict(beyond))
            try:
                entries = plan(rules, form.shapes, form.config)
            except ValueError:
                continue  # a mixer of the user's own: only our own names have a place for it
            found.append(_compare(name, rules, form, entries, renamed, reset))
        if found:
            best = min(found, key=lambda match: (match.faults, -match.fits))
            return best if best.fits else found[0]  # where nothing fits, the naming of fewest names would seem nearest
    raise WeightsError(f'{entry.family} has no naming for the parameters of this model but its own: naming="zoo"')


def _known(model: nnx.Module, rules: Naming, tensors: Tensors) -> int:
    """How many of the file's names the naming has a place for."""
    if rules is not ZOO:
        return sum(rules.covers(name) or rules.ignores(name) for name in tensors)
    ours, extras = flatten(model), getattr(model, "extras", ())
    return sum(name in ours or name.split(".")[0] in extras for name in tensors)


def _beyond(
    model: Any, rules: Naming, tensors: Tensors, reset: bool, described: Mapping[str, Any]
) -> tuple[tuple[str, Any], ...]:
    """Fields of the configuration, and their values, in which the model of such a file, by its tensors and its
    description ``described``, differs from ``model``."""
    fields = {
        field: value for field, value in {**rules.config, **described}.items() if getattr(model.config, field) != value
    }
    for part in getattr(model, "extras", ()):
        if reset and part in getattr(model, "before_head", ()):
            continue
        patterns = [rf"{part}\..*"] if rules is ZOO else rules.names_of((part,))
        if getattr(model, part) is None and any(
            re.fullmatch(pattern, name) for pattern in patterns for name in tensors
        ):
            fields[part] = True
    return tuple(fields.items())


def _renamings(tensors: Tensors, rules: Naming) -> Iterator[Tensors]:
    yield tensors
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            yield {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for tower in _TOWERS:
        if any(name.startswith(tower) for name in tensors):
            yield {name.removeprefix(tower): tensor for name, tensor in tensors.items() if name.startswith(tower)}
    if rules.prefix and not any(name.startswith(rules.prefix) for name in tensors):
        yield {rules.prefix + name: tensor for name, tensor in tensors.items()}


def _compare(name: str, rules: Naming, form: Form, entries: list[Entry], tensors: Tensors, reset: bool) -> Match:
    model, heads = form.parts, _heads(form.parts)
    gone: tuple[str, ...] = ()
    if reset or all(getattr(model, head, None) is None for head in heads):
        held = {
            line.ours[0].split(".")[0] for line in entries if line.ours and any(n in tensors for n in line.released)
        }
        gone = (
            *heads,
            *(
                part
                for part in getattr(model, "before_head", ())
                if getattr(model, part) is None or (reset and part not in held)
            ),
        )
        entries = [line for line in entries if not (line.ours and line.ours[0].split(".")[0] in gone)]
    chosen, missing, misshaped, expected = [], [], [], set()
    for line in entries:
        expected |= set(line.released)
        missing += [n for n in line.released if n not in tensors and n not in line.optional]
        present = {n: tensors[n].shape for n in line.released if n in tensors}
        wrong = [
            f"{n} is {present[n]}, the model has {shape}"
            for n, shape in line.released_shapes().items()
            if n in present and present[n] != shape
        ]
        other = line.with_grid_of(present) if wrong else None
        misshaped += [] if other or line.computed else wrong
        chosen.append(other or line)
    spare = [
        re.compile(pattern) for pattern in ([rf"{part}\..*" for part in gone] if rules is ZOO else rules.names_of(gone))
    ]
    unexpected = [
        n
        for n in tensors
        if n not in expected and not rules.ignores(n) and not any(pattern.fullmatch(n) for pattern in spare)
    ]
    return Match(name, form, chosen, tensors, missing, unexpected, misshaped)


def _read(model: Any, match: Match, dtype: Any, source: Any) -> Iterator[tuple[str, Any]]:
    """Our arrays one by one, on the devices and in the dtype they are to have."""
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
            raise WeightsError(f"{', '.join(held)} of {_told(source)} can't be read: {error}{remedy}") from error
        for name, array in arrays.items():
            leaf = leaves.get(name)
            shape = array.shape if leaf is None else leaf.shape
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


def _check_computed(line: Entry, tensors: Tensors, source: Any) -> None:
    """Refuses a file whose constant of a size differs from what the model computes there."""
    (name,), value = line.released, line.constant
    if value is None or name not in tensors or tensors[name].shape != value.shape:
        return
    # Whole numbers exactly; another library's logarithm may differ in its last bit.
    if not np.allclose(tensors[name].read(), value, rtol=1e-5, atol=1e-6):
        raise WeightsError(
            f"{name} of {_told(source)} is not what the model computes: it is a constant, and the file holds other "
            f"values"
        )


def _warn_of(model: Any, described: Description, source: Any, keep: Iterable[str]) -> None:
    """Reports what the description next to the weights says and is not followed."""
    theirs = described.fields
    differ = [field for field in keep if field in theirs and theirs[field] != getattr(model.config, field)]
    if others := [f"{field}={theirs[field]!r}" for field in differ]:
        warnings.warn(f"config.json of {source} has {', '.join(others)}: what was asked for is kept", stacklevel=4)
    for file, entries in described.unread.items():
        warnings.warn(f"{file} of {source} has {entries}, which is not compared with {model.variant}", stacklevel=4)


def _adopt(model: Any, entry: Variant, form: Form, source: Any, described: bool) -> None:
    """Adds the parts that the file has in addition or in another form, removes those that files of its naming lack, and
    reports it."""
    if form.parts is model:
        return
    if described:
        _restate(model, abstract(entry, form.config))
    ours, theirs = _parts(flatten(model)), _parts(form.shapes)
    for part in ours.keys() - theirs.keys():
        setattr(model, part, None)
    for part in (part for part, names in theirs.items() if names != ours.get(part)):
        setattr(
            model, part, nnx.data(getattr(form.parts, part))
        )  # its arrays are among those that are about to be assigned
    if form.config.shared and getattr(form.config, "depth", None) != getattr(model.config, "depth", None):
        options = {"reductions": model.blocks.reduced_after, "remat": form.config.remat, "scan": form.config.scan}
        model.blocks = Stack([model.blocks[0]] * form.config.depth, **options)
    changed = [f"{name}={value!r}" for name, value in vars(form.config).items() if value != getattr(model.config, name)]
    warnings.warn(
        f"{_told(source)} holds a model with {', '.join(changed)}: this one has become such a model", stacklevel=4
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


def _report(model: Any, entry: Variant, match: Match, source: Any) -> str:
    """One message for all that is wrong."""
    heads = set(_heads(model))
    released_heads = {
        n for line in match.entries if line.ours and line.ours[0].split(".")[0] in heads for n in line.released
    }
    classes = None
    wrong_heads = [line for line in match.misshaped if line.split(" is ")[0] in released_heads]
    if wrong_heads and len(wrong_heads) == match.faults:
        name = wrong_heads[0].split(" is ")[0]
        theirs = next(
            (
                match.tensors[n].shape[0]
                for n in released_heads
                if n in match.tensors and len(match.tensors[n].shape) == 1
            ),
            None,
        )
        classes = theirs if theirs is not None else match.tensors[name].shape[0]
    if classes not in (None, getattr(model.config, "num_classes", classes)):
        return (
            f"{_told(source)} has {classes} classes and {entry.name} {model.config.num_classes}: "
            f'make the model with num_classes={classes}, or load with head="reset" to keep its own classifier'
        )
    parts = [f"{_told(source)} does not fit {entry.name} (read as {match.name!r} names)"]
    most = 12
    if not match.fits:  # it is of another architecture, whose names are all other ones
        namings, most = ", ".join(_namings(entry)), 5
        parts = [
            f"{_told(source)} does not fit {entry.name}: none of its namings ({namings}) does, and the nearest is "
            f"{match.name!r}"
        ]
    for title, names in (
        ("missing", match.missing),
        ("unexpected", match.unexpected),
        ("of another shape", match.misshaped),
    ):
        if names:
            parts.append(f"{len(names)} {title}: {_listed(names, most)}")
    if remedy := _without(model, match):
        parts.append(remedy)
    else:
        nearest = _nearest(entry, match.tensors)
        parts.append(f"by its shapes it is {nearest}" if nearest else "it fits no model of this zoo")
    return "; ".join(parts)


def _without(model: Any, match: Match) -> str:
    """What to do where the file only lacks whole parts that a model may be made without, as a file of a bare encoder
    does."""
    names: dict[str, set[str]] = collections.defaultdict(set)
    for line in match.entries:
        if line.ours:
            names[line.ours[0].split(".")[0]] |= set(line.released) - set(line.optional)
    absent = [part for part, released in names.items() if released <= set(match.missing)]
    if (
        len(match.missing) < match.faults
        or set(match.missing) != set().union(*(names[part] for part in absent))
        or not set(absent) <= set(model.without)
    ):
        return ""
    if set(absent) & set(_heads(model)):
        absent = [
            part for part in absent if part not in getattr(model, "before_head", ())
        ]  # what is done about the head serves them
    return f"the file has {', and '.join(dict.fromkeys(model.without[part] for part in absent))}"


def _listed(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _nearest(entry: Variant, tensors: Tensors) -> str | None:
    """The variants that most of the file's tensors fit, whatever the size of image and the number of classes."""
    groups: dict[Any, list[str]] = {}
    for name in sorted(list_models(), key=lambda n: variant(n).family != entry.family):
        other = variant(name)
        fields = {field.name for field in dataclasses.fields(other.config)}
        blurred: dict[str, Any] = {field: 1 for field in ("num_classes", "image_size") if field in fields}
        shape = dataclasses.replace(other.config, **blurred)
        if other.rules and _plausible(other, tensors):
            groups.setdefault((other.family, shape), []).append(name)
    best, found = len(tensors) // 2, None
    for names in groups.values():
        other = variant(names[0])
        match = _best(abstract(other, other.config), other, tensors, None, reset=True)
        if match.fits - len(match.missing) > best:
            best, found = match.fits - len(match.missing), " or ".join(names[:4])
        if not match.faults:
            break
    return found


def _plausible(entry: Variant, tensors: Tensors) -> bool:
    """Whether the file has vectors of the model's widths, and mostly of them: rules out most variants at no cost."""
    lengths = collections.Counter(tensor.shape[0] for tensor in tensors.values() if len(tensor.shape) == 1)
    width = getattr(entry.config, "features", None)
    if isinstance(width, int):
        return bool(lengths) and lengths.most_common(1)[0][0] == width
    return width is not None and all(size in lengths for size in width)


def _by(shape: Iterable[int]) -> str:
    return "x".join(str(size) for size in tuple(shape)[:2])


def _told(source: Any) -> str:
    return "the dictionary" if isinstance(source, Mapping) else str(source)
