"""Finds the naming that a file of weights was written under, compares the file with a model, and explains a misfit."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

from layers.state import flatten
from suggestions import near
from zoo.naming import ZOO, Naming
from zoo.plan import Entry, plan
from zoo.registry import Variant, abstract, list_models, variant
from zoo.sources import Tensors, WeightsError

# Prefixes that trainers and larger models add to the names of all tensors, or of one tower's.
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.", "params/", "opt/target/")
_TOWERS = ("params/img/", "visual.trunk.")
_OF_A_BLOCK = re.compile(r"((en|de)coder\.)?blocks\.")


class Form:
    """A model in the form that some files hold it: with more parts than it has, or fewer.

    Attributes:
      config: its configuration.
      parts: the model, or an abstract one of that configuration with fewer blocks, which are taken from the model.
      shapes: of all its arrays, by name.
    """

    def __init__(self, model: Any, entry: Variant, beyond: Mapping[str, Any]):
        """``beyond``: the fields of the configuration that differ from the model's."""
        self.config, self.parts = dataclasses.replace(model.config, **beyond), model
        leaves = flatten(model)
        if beyond:
            few = {"depth": 1} if hasattr(self.config, "depth") else {}
            self.parts = abstract(entry, dataclasses.replace(self.config, **few))
            blocks = {name: leaf for name, leaf in leaves.items() if few and _OF_A_BLOCK.match(name)}
            leaves = {
                **{name: leaf for name, leaf in flatten(self.parts).items() if not few or not _OF_A_BLOCK.match(name)},
                **blocks,
            }
        self.shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}


@dataclasses.dataclass
class Match:
    """A file read under one naming.

    Attributes:
      name: of the naming.
      form: the model in the form that files of this naming hold.
      entries: the plan for it.
      tensors: the file's, with names as in the naming.
      missing, unexpected: released names.
      misshaped: one text for each tensor of a wrong shape.
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


def namings(entry: Variant) -> dict[str, Naming]:
    """All namings of an architecture, the zoo's own last."""
    return {**entry.rules, "zoo": ZOO}


def heads_of(model: nnx.Module) -> tuple[str, ...]:
    """Names of the model's classifiers."""
    return getattr(model, "heads", ("head",))


def match_file(
    model: Any, entry: Variant, tensors: Tensors, naming: str | None, head: str | None, described: Mapping[str, Any]
) -> Match:
    """Reads the file under the naming that fits best, or under ``naming``.

    Args:
      model: the model, or an abstract one.
      entry: its variant.
      tensors: the file's.
      head: "reset" if the model keeps its own classifier.
      described: fields of the configuration that the description next to the weights states.

    Raises:
      WeightsError: the architecture has no such naming, or none for the model's parameters.
    """
    if naming is not None and naming not in namings(entry):
        raise WeightsError(
            f"{entry.family} has no naming {naming!r}{near(naming, namings(entry))}; it has: "
            f"{', '.join(namings(entry))}"
        )
    return best_match(model, entry, tensors, naming, reset=head == "reset", described=described)


def best_match(
    model: Any,
    entry: Variant,
    tensors: Tensors,
    naming: str | None,
    *,
    reset: bool = False,
    described: Mapping[str, Any] | None = None,
) -> Match:
    """Reads the file under the naming, and without the prefix, for which it fits the model best: the ones that cover
    most of its names.

    Raises:
      WeightsError: no naming covers the model's parameters.
    """
    readings: dict[int, list[tuple[str, Naming, Tensors]]] = collections.defaultdict(list)
    for name, rules in namings(entry).items():
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
                continue  # a user-defined mixer: only our own naming covers it
            found.append(_compare(name, rules, form, entries, renamed, reset))
        if found:
            best = min(found, key=lambda match: (match.faults, -match.fits))
            return best if best.fits else found[0]  # if nothing fits, the fewest names would win
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
    """Fields of the configuration, with values, in which the file's model differs from ``model``, judged by the file's
    tensors and by its description ``described``."""
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
    model, heads, channels = form.parts, heads_of(form.parts), getattr(form.config, "in_channels", 0)
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
        other = (line.with_grid_of(present) or line.with_colors_of(present, channels)) if wrong else None
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


def misfit(model: Any, entry: Variant, match: Match, source: Any) -> str:
    """One message that lists all faults."""
    heads = set(heads_of(model))
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
            f"{source_name(source)} has {classes} classes and {entry.name} {model.config.num_classes}: "
            f'make the model with num_classes={classes}, or load with head="reset" to keep its own classifier'
        )
    parts = [f"{source_name(source)} does not fit {entry.name} (read as {match.name!r} names)"]
    most = 12
    if not match.fits:  # a file of another architecture shares no names
        known, most = ", ".join(namings(entry)), 5
        parts = [
            f"{source_name(source)} does not fit {entry.name}: none of its namings ({known}) does, and the nearest is "
            f"{match.name!r}"
        ]
    for title, names in (
        ("missing", match.missing),
        ("unexpected", match.unexpected),
        ("of another shape", match.misshaped),
    ):
        if names:
            parts.append(f"{len(names)} {title}: {_listed(names, most)}")
    if remedy := _without(model, match) or model.remedy(match.missing, match.unexpected):
        parts.append(remedy)
    else:
        nearest = _nearest(entry, match.tensors)
        none = "it fits no model of this zoo as published"
        parts.append(f"by its shapes it is {nearest}" if nearest else none)
    return "; ".join(parts)


def _without(model: Any, match: Match) -> str:
    """The remedy if the file only lacks whole parts that a model can be made without, as a bare encoder's does; else an
    empty string."""
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
    if set(absent) & set(heads_of(model)):
        absent = [
            part for part in absent if part not in getattr(model, "before_head", ())
        ]  # the head's remedy covers them
    return f"the file has {', and '.join(dict.fromkeys(model.without[part] for part in absent))}"


def _listed(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _nearest(entry: Variant, tensors: Tensors) -> str | None:
    """The variants that most of the file's tensors fit, regardless of image size and number of classes."""
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
        match = best_match(abstract(other, other.config), other, tensors, None, reset=True)
        if match.fits - len(match.missing) > best:
            best, found = match.fits - len(match.missing), " or ".join(names[:4])
        if not match.faults:
            break
    return found


def _plausible(entry: Variant, tensors: Tensors) -> bool:
    """Whether the lengths of the file's vectors are the model's widths: rules out most variants cheaply."""
    lengths = collections.Counter(tensor.shape[0] for tensor in tensors.values() if len(tensor.shape) == 1)
    width = getattr(entry.config, "features", None)
    if isinstance(width, int):
        return bool(lengths) and lengths.most_common(1)[0][0] == width
    return width is not None and all(size in lengths for size in width)


def source_name(source: Any) -> str:
    """The name of a source of weights in messages."""
    return "the dictionary" if isinstance(source, Mapping) else str(source)
