"""The one place where a config is built: the fields of every run, and the recipes of vision and of language.

A config file of an architecture is data: its model and settings on the embedded digits, and the published settings of
each of its variants on ImageNet-1k. The argument after the file's name chooses what to train on::

    --config=configs/biformer.py                                     the embedded digits
    --config=configs/biformer.py:imagenet,variant=tiny               the published recipe
    --config=configs/biformer.py:folder,path=DIR                     the user's images, one folder a class
    --config=configs/biformer.py:folder,path=DIR,variant=tiny        the same with a published model
    --config=configs/biformer.py:tfds,name=cifar10,variant=tiny      any prepared TFDS image classification set

and of a language model::

    --config=configs/mamba.py                                        the embedded text, Python's standard library
    --config=configs/mamba.py:text,path=DIR                          the user's text, a file or a folder
    --config=configs/mamba.py:tfds,name=lm1b                         any prepared TFDS text set
    --config=configs/mamba.py:task,name=selective_copying,length=256 a task of tasks.list_tasks() with its options

and of an encoder-decoder::

    --config=configs/t5.py                                           computed pairs: the target is the source reversed
    --config=configs/t5.py:sort,length=20                            another computed set with its options
    --config=configs/t5.py:file,path=FILE                            the user's pairs, a .tsv or .jsonl file or a folder

Language models and encoder-decoders also take variant=, and on text tokenizer=FILE (a tokenizer.json; the default is
bytes). Every field can be overridden on the command line: ``--config.batch_size=64``.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from suggestions import unknown

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The data of a vision architecture's config file. All are nested fields that replace those of the recipe.

    Attributes:
      digits: the small model and its settings on the embedded digits.
      variants: published ImageNet-1k settings by the name of the variant, each with "model".
      imagenet: settings that all variants share.
      default: the variant used on ImageNet if none is named.
    """

    digits: Fields
    variants: Mapping[str, Fields]
    imagenet: Fields
    default: str


def run() -> ConfigDict:
    """Returns the fields that every run has, whatever its task, with their defaults."""
    return ConfigDict(
        {
            "seed": 0,
            "model": "",
            "model_options": {},  # overrides for zoo.create
            "weights": "",  # a file or a name to start from; "" is random
            # LoRA adapters of this rank in the layers that match (globs over names); everything except them and the
            # head is frozen. Their update is scaled by alpha / rank; 0 is alpha = rank. Rank 0 trains the model itself.
            "lora": {"rank": 0, "alpha": 0.0, "patterns": ("*blocks.*",)},
            "task": {},  # name, and the options of that task
            "train_for": "1 epoch",  # durations: "3 epochs", "500 steps", "10000 examples"
            "eval_every": "1 epoch",
            "save_every": "1 epoch",
            "patience": 0,  # evaluations without a better figure after which the run ends early; 0 is never
            "batch_size": 64,
            "accumulate": 1,  # microbatches per step
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,  # the peak
                "weight_decay": 0.05,
                "clip_norm": 0.0,  # largest global norm of the gradient; 0 is off
                "layer_decay": 1.0,  # factor on the learning rate from each layer to the one below
                # Pairs of a parameter-name pattern and a factor on the learning rate: (("head.*", 10.0),).
                "multipliers": (),
                # Parameter-name patterns; one that begins with "!" unfreezes: ("*", "!head.*") trains only the head.
                "freeze": (),
                "no_decay": (),  # parameter-name patterns, in addition to those of the model
                "options": {},  # of the optimizer, such as b1
                # How updates are applied to parameters of lower precision than float32: "master" (a float32 copy of
                # them in the optimizer's state) or "stochastic" (rounding); memory of each: training/precision.py.
                "rounding": "master",
            },
            "schedule": {"name": "cosine", "warmup": "0 steps", "final": 0.0},  # final: as a fraction of the peak
            "ema": 0.0,  # decay of the averaged weights; 0 is off
            "dtype": "float32",  # of the computation
            "param_dtype": "float32",  # of the parameters; the optimizer's state is always float32
            # What is recomputed in the backward pass: nothing, dots, block, offload (layers/rematerialization.py).
            "remat": "nothing",
            "scan": False,
            "aux_losses": {},  # weights of losses that modules report, by name
            "nonfinite": "stop",  # or "skip"
            # Devices along each axis; -1 is all remaining ones. data and fsdp split the rows of a batch, fsdp and
            # tensor the parameters, sequence the tokens.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1},
            # Several processes, one per host: the address "host:port" of the first, their number, and the index of this
            # one, from 0. Also from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID. "auto"
            # asks the cluster's scheduler.
            "distributed": {"coordinator": "", "processes": 0, "process": -1},
            "workers": 2,
            "keep": 3,  # number of checkpoints, besides the best
            "log_every": 10,  # steps
            "profile": 0,  # steps to trace
        }
    )


def classification() -> ConfigDict:
    """Returns the fields of an image classification run, without augmentation beyond crops and flips."""
    config = run()
    config.task = ConfigDict(
        {
            "name": "classification",
            "dataset": {"name": "digits"},
            "label_smoothing": 0.0,
            "class_weights": "",  # of the training loss: "balanced", or factors by name, "cat=2,dog=0.5"
            "image_size": placeholder(int),  # None: the model's own
            "augment": {
                "fit": "crop",
                "crop_scale": (0.08, 1.0),
                "crop_ratio": (3 / 4, 4 / 3),
                "flip": 0.5,
                "rotation": 0.0,
                "translation": 0.0,
                "zoom": 0.0,
                "shear": 0.0,
                "color_jitter": 0.0,
                "rand_augment": "",
            },
            "aux_logits": {},  # weights of the losses of additional logits that modules report, by name
            "mix": {"mixup": 0.0, "cutmix": 0.0, "probability": 1.0, "switch": 0.5, "mode": "batch", "erasing": 0.0},
            # A teacher by its model and weights, or the working directory of a run as weights; the target: "hard" (its
            # most probable class) or "soft" (its probabilities); and the weight of this loss.
            "distillation": {"teacher": {"name": "", "weights": ""}, "kind": "hard", "weight": 0.5, "temperature": 1.0},
        }
    )
    return config


def imagenet(
    batch_size: int, learning_rate: float, *, warmup: str, final: float, rand_augment: str, mix: Fields, **more: Any
) -> Fields:
    """The common settings of recipes for vision transformers on ImageNet-1k since DeiT: AdamW, a cosine schedule over
    300 epochs, bfloat16.

    Args:
      batch_size, learning_rate: the batch size, and the peak rate for it.
      warmup: a duration.
      final: learning rate at the end, as a fraction of the peak.
      rand_augment: RandAugment in timm's notation.
      mix: settings of mixup, cutmix and random erasing.
      more: further nested fields of the recipe.
    """
    optimizer = {"name": "adamw", "learning_rate": learning_rate, "weight_decay": 0.05, **more.pop("optimizer", {})}
    return {
        "train_for": "300 epochs",
        "batch_size": batch_size,
        "optimizer": optimizer,
        "schedule": {"name": "cosine", "warmup": warmup, "final": final},
        "dtype": "bfloat16",
        "task": {"label_smoothing": 0.1, "augment": {"rand_augment": rand_augment}, "mix": mix},
        **more,
    }


def deit(
    batch_size: int = 1024, learning_rate: float = 1e-3, *, warmup: str = "5 epochs", final: float = 0.01, **more: Any
) -> Fields:
    """The recipe of DeiT (H. Touvron et al., arXiv:2012.12877, table 9), and of papers that adopted its augmentation;
    arguments as in :func:`imagenet`.
    """
    mix = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25}
    augment = "rand-m9-mstd0.5-inc1"
    return imagenet(batch_size, learning_rate, warmup=warmup, final=final, rand_augment=augment, mix=mix, **more)


def bag_of_tricks(**more: Any) -> Fields:
    """The recipe of Bag of Tricks (T. He et al., arXiv:1812.01187) for convolutional networks; ``more`` as in
    :func:`imagenet`.
    """
    sgd = {"name": "sgd", "weight_decay": 1e-4, "options": {"momentum": 0.9, "nesterov": True}}
    recipe = imagenet(1024, 0.4, warmup="5 epochs", final=0.0, rand_augment="", mix={"mixup": 0.2}, optimizer=sgd)
    return {**recipe, "train_for": "200 epochs", "model_options": {"zero_init": True}, **more}


def digits(model: str, *, epochs: int = 30, evaluated: int = 5, learning_rate: float = 2e-3, warmup: int = 2) -> Fields:
    """The settings of a small model on the embedded digits; durations in epochs, with an evaluation every ``evaluated``
    epochs.
    """
    return {
        "model": model,
        "train_for": f"{epochs} epochs",
        "eval_every": f"{evaluated} epochs",
        "optimizer": {"learning_rate": learning_rate},
        "schedule": {"warmup": f"{warmup} epochs"},
    }


def _digits(architecture: Architecture) -> ConfigDict:
    config = classification()
    config.task.dataset = ConfigDict({"name": "digits", "data_dir": placeholder(str)})
    config.task.augment.update(
        {"fit": "whole", "flip": 0.0, "rotation": 10.0, "translation": 0.08, "zoom": 0.1, "shear": 0.1}
    )
    config.update(
        {"train_for": "20 epochs", "save_every": "10 epochs", "schedule": {"warmup": "2 epochs", "final": 0.01}}
    )
    config.task.label_smoothing = 0.1
    config.update(architecture.digits)
    return config


def _published(architecture: Architecture, variant: str) -> ConfigDict:
    config = classification()
    config.update(architecture.imagenet)
    config.update(architecture.variants[variant])
    return config


def _imagenet(architecture: Architecture, variant: str) -> ConfigDict:
    config = _published(architecture, variant)
    config.task.dataset = ConfigDict({"name": "tfds", "builder": "imagenet2012", "data_dir": placeholder(str)})
    return config


def _small(config: ConfigDict) -> ConfigDict:
    """Adapts a published recipe to a smaller data set and one machine, possibly without an accelerator; entirely our
    choice.

    The learning rate is scaled with the square root of the batch size, as is usual for adaptive optimizers. Published
    settings in steps (warm-up, the decay of averaged weights) may exceed the whole run here and are replaced.
    """
    config.optimizer.learning_rate *= math.sqrt(64 / config.batch_size)
    config.update(
        {
            "batch_size": 64,
            "train_for": "100 epochs",
            "dtype": "float32",
            "schedule": {"warmup": "5 epochs"},
            "ema": 0.0,
        }
    )
    return config


def _nano(architecture: Architecture) -> ConfigDict:
    """The small model of the embedded digits, for photos of 64 pixels and machines without an accelerator; entirely our
    choice.
    """
    config = classification()
    config.task.augment.crop_scale = (0.35, 1.0)
    config.update({"save_every": "5 epochs", "schedule": {"final": 0.01}})
    config.update(architecture.digits)
    config.task.update({"image_size": 64, "label_smoothing": 0.1})
    config.update({"train_for": "40 epochs", "eval_every": "2 epochs"})
    return config


def _own(architecture: Architecture, variant: str) -> ConfigDict:
    return _nano(architecture) if variant == NANO else _small(_published(architecture, variant))


def _folder(architecture: Architecture, variant: str, path: str) -> ConfigDict:
    config = _own(architecture, variant)
    config.task.dataset = ConfigDict({"name": "folder", "path": path, "corrupt": "refuse", "smallest": 16})
    return config


def _tfds(architecture: Architecture, variant: str, name: str) -> ConfigDict:
    config = _own(architecture, variant)
    config.task.dataset = ConfigDict({"name": "tfds", "builder": name, "data_dir": placeholder(str)})
    return config


NANO = "nano"
"""The variant for the user's own images where none is named."""

_RECIPES: dict[str, tuple[Callable[..., ConfigDict], tuple[str, ...]]] = {
    "digits": (_digits, ()),
    "imagenet": (_imagenet, ("variant",)),
    "folder": (_folder, ("variant", "path")),
    "tfds": (_tfds, ("variant", "name")),
}


def parse(argument: str) -> tuple[str, dict[str, str]]:
    """Splits "folder,path=DIR,variant=tiny" into its head and its settings; a part that does not begin with ``word=``
    belongs to the preceding value.

    Raises:
      ValueError: such a part has no preceding value.
    """
    head, *parts = argument.split(",")
    settings: dict[str, str] = {}
    name = ""
    for part in parts:
        key, equals, value = part.partition("=")
        if equals and key.strip().isidentifier():
            name = key.strip()
            settings[name] = value
        elif name:
            settings[name] += "," + part
        else:
            raise ValueError(f"config argument {part!r} is not of the form name=value")
    return head.strip() or "digits", settings


def _unknown(head: str, known: Iterable[str], example: str) -> str:
    """The message for a config argument that names no known data."""
    if "=" in head:
        return f"the config argument {head!r} is a setting: what to train on comes first, as in {example}"
    return unknown("config argument", head, known)


def vision(architecture: Architecture, argument: str | None) -> ConfigDict:
    """Builds the config of a vision architecture.

    Args:
      architecture: the data of the config file.
      argument: what follows the colon after the file's name; "" or None is the embedded digits.

    Raises:
      ValueError: an unknown data set, setting or variant (the message suggests similar ones), or a missing setting.
    """
    head, settings = parse(argument or "")
    if head not in _RECIPES:
        raise ValueError(_unknown(head, _RECIPES, "folder,path=DIR"))
    recipe, takes = _RECIPES[head]
    for name in settings:
        if name not in takes:
            raise ValueError(unknown(f"setting of the config argument {head!r}", name, takes))
    if "variant" in takes:
        own = head != "imagenet"
        settings.setdefault("variant", NANO if own else architecture.default)
        variants = [*([NANO] if own else []), *architecture.variants]
        if settings["variant"] not in variants:
            raise ValueError(unknown("variant", settings["variant"], variants))
    missing = [name for name in takes if not settings.get(name)]
    if missing:
        raise ValueError(
            f"the config argument {head!r} needs {', '.join(f'{name}=' for name in missing)}, as in "
            f"{head},{missing[0]}=..."
        )
    return recipe(architecture, **settings)


@dataclasses.dataclass(frozen=True)
class LanguageArchitecture:
    """The data of a language model's config file. All are nested fields that replace those of the recipe.

    Attributes:
      variants: settings by the name of the variant, each with "model".
      default: the variant used if none is named: one that trains in minutes on two cores.
      task: settings for the recall and structure tasks, whose models are even smaller.
    """

    variants: Mapping[str, Fields]
    default: str = "nano"
    task: Fields = dataclasses.field(default_factory=dict)


def _language_run(architecture: LanguageArchitecture, variant: str) -> ConfigDict:
    """The recipe of modern decoders: AdamW, b2 0.95, weight decay 0.1, gradients clipped at 1, cosine to a tenth."""
    config = run()
    config.optimizer.update({"weight_decay": 0.1, "clip_norm": 1.0})
    config.optimizer.options.b2 = 0.95
    config.schedule.update({"warmup": "100 steps", "final": 0.1})
    config.update(
        {
            "train_for": "1500 steps",
            "eval_every": "500 steps",
            "save_every": "500 steps",
            "log_every": 20,
            "batch_size": 16,
        }
    )
    _replace(config, architecture.variants[variant])
    return config


def _replace(config: ConfigDict, fields: Fields) -> None:
    fields = dict(fields)
    config.model_options.update(fields.pop("model_options", {}))  # not in the defaults: options differ between models
    config.update(fields)


def _text(
    architecture: LanguageArchitecture, variant: str, path: str = "", name: str = "", tokenizer: str = ""
) -> ConfigDict:
    config = _language_run(architecture, variant)
    data_dir = {"data_dir": placeholder(str)}
    dataset = (
        {"name": "files", "path": path}
        if path
        else {"name": "tfds", "builder": name, **data_dir}
        if name
        else {"name": "stdlib", **data_dir}
    )
    task = {"name": "text", "dataset": dataset, "sequence_length": 256, "packing": False, "order": "shuffled"}
    config.task = ConfigDict({**task, **{option: placeholder(str) for option in ("tokenizer", "separator", "prompt")}})
    if tokenizer:
        config.task.tokenizer = tokenizer
    return config


def _any_task(architecture: LanguageArchitecture, variant: str, name: str, **options: str) -> ConfigDict:
    config = _language_run(architecture, variant)
    config.update(
        {
            "train_for": "10000 steps",
            "eval_every": "1000 steps",
            "save_every": "1000 steps",
            "log_every": 50,
            "batch_size": 64,
        }
    )
    _replace(config, architecture.task)
    config.task = ConfigDict({"name": name, **{option: parsed(text) for option, text in options.items()}})
    return config


def parsed(text: str) -> Any:
    """The value of a Python literal, such as a number or True; other text unchanged."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_LANGUAGE: dict[
    str, tuple[Callable[..., ConfigDict], tuple[str, ...], tuple[str, ...]]
] = {  # recipe, needed, optional settings
    "text": (_text, (), ("path", "tokenizer")),
    "tfds": (_text, ("name",), ("tokenizer",)),
    "task": (_any_task, ("name",), ()),
}


def language(architecture: LanguageArchitecture, argument: str | None) -> ConfigDict:
    """Builds the config of a language model.

    Args:
      architecture: the data of the config file.
      argument: what follows the colon after the file's name; "" or None is the embedded text.

    Raises:
      ValueError: an unknown recipe, setting or variant (the message suggests similar ones), or a missing setting.
    """
    head, settings = parse(argument or "text")
    if head not in _LANGUAGE:
        raise ValueError(_unknown(head, _LANGUAGE, "text,path=DIR"))
    recipe, needed, optional = _LANGUAGE[head]
    known = ("variant", *needed, *optional)
    for name in settings:
        if name not in known and head != "task":  # the options of a task are checked by the task
            raise ValueError(unknown(f"setting of the config argument {head!r}", name, known))
    missing = [name for name in needed if not settings.get(name)]
    if missing:
        raise ValueError(f"the config argument {head!r} needs {missing[0]}=, as in {head},{missing[0]}=...")
    settings.setdefault("variant", architecture.default)
    if settings["variant"] not in architecture.variants:
        raise ValueError(unknown("variant", settings["variant"], architecture.variants))
    return recipe(architecture, **settings)


def sequence_to_sequence(architecture: LanguageArchitecture, argument: str | None) -> ConfigDict:
    """Builds the config of an encoder-decoder.

    Args:
      architecture: the data of the config file; ``task`` are the settings on computed pairs.
      argument: what follows the colon after the file's name: the name of a set of pairs and its options; "" or None is
        "reverse".

    Raises:
      ValueError: an unknown variant (the message suggests similar ones), or a file without path=.
    """
    head, settings = parse(argument or "reverse")
    variant, tokenizer = settings.pop("variant", architecture.default), settings.pop("tokenizer", "")
    if variant not in architecture.variants:
        raise ValueError(unknown("variant", variant, architecture.variants))
    config = _language_run(architecture, variant)
    dataset: dict[str, Any] = {"name": head, **{option: parsed(text) for option, text in settings.items()}}
    if head == "file":
        if "path" not in settings:
            raise ValueError("the config argument 'file' needs path=, as in file,path=...")
        dataset["path"] = settings["path"]
    else:
        _replace(config, architecture.task)
    if config.optimizer.name != "adamw":
        config.optimizer.options = ConfigDict()  # the recipe's options are AdamW's
    lengths = {name: placeholder(int) for name in ("source_length", "target_length")}
    texts = {"tokenizer": placeholder(str), "separator": placeholder(str)}
    task = {"name": "sequence_to_sequence", "dataset": dataset, **lengths, **texts}
    config.task = ConfigDict({**task, "label_smoothing": 0.0, "monitor": "exact"})
    if tokenizer:
        config.task.tokenizer = tokenizer
    return config
