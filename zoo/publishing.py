"""Models as self-describing folders, and on the Hugging Face hub: ``zoo.create(weights=FOLDER)`` and
``zoo.create(weights="hf://owner/name")`` read them without a name or options.

A folder holds ``model.safetensors`` under the zoo's own names, ``model.json`` (variant, options, classes, image
preprocessing, tokenizer), the tokenizer's file where there is one, and ``README.md``, the card that the hub shows.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from layers.state import flatten, parameter_count
from zoo.creation import create_abstract
from zoo.files import write_file
from zoo.quantization import described
from zoo.registry import Variant, variant
from zoo.sources import RECORD, TOKENIZER, WeightsError, discreet
from zoo.weights import save

CARD = "README.md"


def save_folder(model: nnx.Module, folder: str | Path, *, license: str | None = None) -> Path:
    """Writes everything needed to create ``model`` again.

    Args:
      model: made by ``zoo.create``, trained or not.
      folder: where to write; created if it is missing. Files of these names in it are replaced.
      license: of the weights, an SPDX name, for the card; None states none.

    Returns:
      The folder.

    Raises:
      WeightsError: the model has a part that its options don't describe, such as a mixer given as a function, or
        adapters.
    """
    described, folder = record(model), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / "model.safetensors", naming="zoo")
    tokenizer = described.get("tokenizer", {})
    if (file := Path(str(tokenizer.get("path", "")))).is_file():
        shutil.copyfile(file, folder / TOKENIZER)
        tokenizer["path"] = TOKENIZER
    write_file(folder / RECORD, json.dumps(described, indent=2).encode())
    write_file(folder / CARD, card(model, license=license).encode())
    return folder


def push_to_hub(
    model: nnx.Module,
    repository: str,
    *,
    license: str | None = None,
    private: bool = False,
    message: str = "Add the model",
    token: str | None = None,
) -> str:
    """Writes the model to ``repository`` on the Hugging Face hub, which is created if it is missing.

    Args:
      model, license: as for :func:`save_folder`.
      repository: "owner/name".
      private: whether a repository created by this call is private.
      message: the commit's.
      token: the user's; None takes the one of ``hf auth login`` or HF_TOKEN.

    Returns:
      The source for ``zoo.create(weights=...)``: "hf://owner/name@commit".

    Raises:
      WeightsError: as :func:`save_folder`; or the hub refuses, or can't be reached.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, folder, license=license)
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            commit = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except Exception as error:  # the client's own, and those of the HTTP library that it uses
            reason = discreet(error, token)
            raise WeightsError(
                f"hf://{repository} can't be written ({reason}): the name is owner/name, and hf auth login stores a "
                "token that may write there"
            ) from None
    return f"hf://{repository}@{commit.oid}"


def record(model: nnx.Module) -> dict[str, Any]:
    """The record of a model that :func:`zoo.sources.run_record` reads.

    Raises:
      WeightsError: as :func:`save_folder`.
    """
    made: Any = model
    entry = variant(made.variant)
    options = {
        field.name: _plain(field.name, getattr(made.config, field.name))
        for field in dataclasses.fields(made.config)
        if field.name not in ("dtype", "param_dtype")
        and getattr(made.config, field.name) != getattr(entry.config, field.name)
    }
    again = create_abstract(entry.name, **json.loads(json.dumps(options)))
    differ = [
        field.name
        for field in dataclasses.fields(made.config)
        if field.name not in ("dtype", "param_dtype")
        and getattr(again.config, field.name) != getattr(made.config, field.name)
    ]
    shapes = [{name: tuple(leaf.shape) for name, leaf in flatten(which).items()} for which in (again, made)]
    if differ or shapes[0] != shapes[1]:
        others = differ or sorted(name for name, _ in set(shapes[0].items()) ^ set(shapes[1].items()))[:5]
        raise WeightsError(
            f"{entry.name} with other {', '.join(others)} can't be described by its options: merge adapters by "
            "zoo.merge_lora, and name mixers instead of giving functions"
        )
    found: dict[str, Any] = {"model": entry.name, "options": options}
    if names := getattr(made, "class_names", None):
        found["class_names"] = list(names)
    if released := getattr(made, "released", None):
        found["preprocess"] = _plain("preprocess", released)
    if tokenizer := getattr(made, "tokenizer", None):
        found["tokenizer"] = _plain("tokenizer", tokenizer)
    return found


def _plain(field: str, value: Any) -> Any:
    """The value in JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {part.name: _plain(field, getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(field, part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(field, part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise WeightsError(f"{field}={value!r} can't be written to a file: give a name and options instead")


def card(model: nnx.Module, *, license: str | None = None) -> str:
    """The model card for the hub: what the model is, how it is loaded, and its paper."""
    from huggingface_hub import ModelCardData

    made: Any = model
    entry = variant(made.variant)
    tags = ["jax", "flax", "mixer-zoo", entry.family]
    data = ModelCardData(library_name="mixer-zoo", license=license, tags=tags)
    names = getattr(made, "class_names", None)
    facts = [f"{parameter_count(model):,} parameters", *filter(None, [described(model)])]
    facts += [f"{len(names)} classes: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"] if names else []
    lines = [
        f"# {entry.name}",
        _paper(entry),
        *(f"- {fact}" for fact in facts),
        "## Use",
        '```python\nimport zoo\n\nmodel = zoo.create(weights="hf://OWNER/NAME")  # this repository\n```',
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"


def _paper(entry: Variant) -> str:
    """The first lines of the module that builds the model, which name its paper."""
    text = sys.modules[entry.build.__module__].__doc__ or ""
    return " ".join(text.partition("\n\n")[0].split())
