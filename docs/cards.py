"""A card for each family of models: ``python -m docs.cards`` writes docs/cards.md, the drawings beside it, and
docs/cards.json, the parameter count of each model. Models already in that file are not counted again, except those of
``--family NAME``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import zoo
from docs.blocks import draw
from docs.catalogue import built, first_paragraph, module_of, parameter_count, table
from docs.results import HOME
from zoo.registry import Variant, variant

PAGE = HOME / "docs" / "cards.md"
COUNTS = HOME / "docs" / "cards.json"
DRAWINGS = HOME / "docs" / "pictures" / "blocks"
HEAD = """# Model cards

Written by `python -m docs.cards` from the registries; not edited by hand. The drawings are made from the modules of the
model that a card names: each kind of block is drawn once, with the numbers of its first block. Beside each residual sum
are the modules that the branch passes through. In a table, models whose sizes are the zoo's own choice are marked
"ours".

Weights named in the last column load with `zoo.create(NAME, weights=TAG)`;
[released weights](how_to/released_weights.md) lists the other ways, and [weights](weights.md) what was compared. Their
licenses are as stated where they were released: read them there before you rely on them.
"""


def families() -> dict[str, list[Variant]]:
    """The models of each family, by name."""
    found: dict[str, list[Variant]] = {}
    for name in zoo.list_models():
        found.setdefault(variant(name).family, []).append(variant(name))
    return dict(sorted(found.items()))


def example(members: Iterable[Variant]) -> Variant:
    """The model that represents its family: the same that the catalogue shows."""
    return min(members, key=lambda member: (not member.published, len(member.name), member.name))


def load() -> dict[str, int]:
    """The recorded parameter count of each model."""
    return json.loads(COUNTS.read_text()) if COUNTS.exists() else {}


def page(counts: Mapping[str, int]) -> str:
    """The page."""
    return "\n".join([HEAD, *(card(family, members, counts) for family, members in families().items())])


def card(family: str, members: list[Variant], counts: Mapping[str, int]) -> str:
    """The card of a family."""
    shown = example(members)
    about = first_paragraph(module_of(family))
    lines = [
        f"## {family}",
        "",
        f"{_linked(about)}.",
        "",
        f"![The blocks of {shown.name}](pictures/blocks/{family}.svg)",
        "",
    ]
    code = module_of(family).__name__
    lines += [f"The blocks of `{shown.name}`; `{code}` has the code.", "", _sizes(members, counts)]
    facts = [("Naming schemes of weights", ", ".join(f"`{naming}`" for naming in [*shown.rules, "zoo"]))]
    facts += [("Input", _input(shown))]
    if licenses := sorted({release.license for member in members for release in member.releases.values()}):
        facts.append(("License of the weights", ", ".join(licenses)))
    else:
        facts.append(("License of the weights", "not known here: no released checkpoint is listed for this family"))
    facts.append(("Cite", about))
    return "\n".join([*lines, *(f"- **{name}.** {value}" for name, value in facts), ""])


def _linked(about: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", about)


def _input(entry: Variant) -> str:
    """What a model takes as input, and how images are prepared."""
    config: Any = entry.config
    if not hasattr(config, "image_size") and not hasattr(config, "vocab_size"):
        return f"numbers (batch, length, {config.in_features}) for `{entry.name}`"
    if not hasattr(config, "image_size"):
        return f"tokens (batch, length), a vocabulary of {config.vocab_size} for `{entry.name}`"
    prepare = zoo.preprocess(entry.name)
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (prepare.mean, prepare.std))
    crop = f"{prepare.crop_mode} crop of {prepare.crop_fraction:.4g}, {prepare.interpolation}"
    size = f"{config.image_size} x {config.image_size} x {config.in_channels}"
    return f"images of {size} for `{entry.name}`: {crop}, mean ({mean}), standard deviation ({std})"


def _sizes(members: list[Variant], counts: Mapping[str, int]) -> str:
    rows = []
    for entry in members:
        c: Any = entry.config
        given = (c.features, getattr(c, "depths", None) or c.depth, c.num_heads, getattr(c, "image_size", None))
        rows.append(
            [
                f"`{entry.name}`" + ("" if entry.published else " (ours)"),
                f"{counts[entry.name]:,}" if entry.name in counts else "not counted",
                *("" if value is None else _listed(value) for value in given),
                ", ".join(f"`{tag}`" for tag in entry.releases),
            ]
        )
    return table(["model", "parameters", "features", "depth", "heads", "pixels", "weights"], rows)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def drawing(family: str) -> str:
    """The drawing of a family's blocks."""
    return draw(built(example(families()[family]).name))


def main() -> None:
    """Writes the page, the counts and the drawings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=list(families()), help="count the models of this family again")
    again = parser.parse_args().family
    known = load()
    counts = {
        name: known[name] if name in known and variant(name).family != again else parameter_count(name)
        for name in zoo.list_models()
    }
    COUNTS.write_text(json.dumps(dict(sorted(counts.items())), indent=1) + "\n")
    DRAWINGS.mkdir(parents=True, exist_ok=True)
    for family in families():
        (DRAWINGS / f"{family}.svg").write_text(drawing(family))
    for path in DRAWINGS.glob("*.svg"):
        if path.stem not in families():
            path.unlink()
    PAGE.write_text(page(counts))


if __name__ == "__main__":
    main()
