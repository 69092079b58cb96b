"""Every config file with every argument builds, and says only what the task and the run know."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

import tasks
import zoo
from configs import common
from tasks.augment import Augment
from tasks.mixing import Mixing
from tasks.rand_augment import RandAugment

FILES = sorted(
    path.stem for path in Path(common.__file__).parent.glob("*.py") if path.stem not in ("__init__", "common")
)
MODULES = {name: importlib.import_module(f"configs.{name}") for name in FILES}
VISION = [name for name in FILES if isinstance(getattr(MODULES[name], "ARCHITECTURE", None), common.Architecture)]
CASES = [
    (name, argument)
    for name in VISION
    for variant in MODULES[name].ARCHITECTURE.variants
    for argument in (
        "",
        f"imagenet,variant={variant}",
        f"folder,path=/some/where,variant={variant}",
        f"tfds,name=cifar10,variant={variant}",
    )
] + [(name, argument) for name in VISION for argument in ("folder,path=/some/where", "tfds,name=cifar10")]


def leaves(config, prefix=""):
    for name, value in config.items():
        if hasattr(value, "items"):
            yield prefix + name, {}
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_a_config_has_the_fields_of_a_run_and_of_its_task(name, argument):
    config = MODULES[name].get_config(argument)
    assert set(config) == set(common.run())
    options = config.task.to_dict()
    assert set(options["augment"]) == {f.name for f in dataclasses.fields(Augment)}
    assert set(options["mix"]) == {f.name for f in dataclasses.fields(Mixing)}
    takes = inspect.signature(tasks.lookup(options.pop("name"))).parameters
    assert set(options) | set(tasks.Classification.needs) == set(takes)
    Augment(**options["augment"])
    Mixing(**options["mix"])
    if options["augment"]["rand_augment"]:
        RandAugment.parse(options["augment"]["rand_augment"])
    base = dict(leaves(common.run()))
    for field, value in leaves(config):
        if field in base:
            assert type(value) is type(base[field]), field


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_its_model_is_in_the_zoo(name, argument):
    assert MODULES[name].get_config(argument).model in zoo.list_models()


@pytest.mark.parametrize("name", VISION)
def test_the_embedded_digits_are_the_default(name):
    config = MODULES[name].get_config()
    assert config.task.dataset.name == "digits"
    assert config == MODULES[name].get_config("digits")


@pytest.mark.parametrize("name", VISION)
def test_arguments_reach_their_fields(name):
    get = MODULES[name].get_config
    assert get("folder,path=/a,b/c=d e").task.dataset.path == "/a,b/c=d e"
    assert get("tfds,name=mnist").task.dataset.builder == "mnist"
    assert get("folder,path=/a").model == get().model == get("folder,path=/a,variant=nano").model
    assert get("folder,path=/a").task.image_size == 64
    assert get("imagenet").model == get(f"imagenet,variant={MODULES[name].ARCHITECTURE.default}").model
    assert get("imagenet").task.dataset.builder == "imagenet2012"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("imagnet", "unknown config argument 'imagnet': did you mean 'imagenet'"),
        ("zzz", "unknown config argument 'zzz': there are: digits, folder, imagenet, tfds"),
        ("path=DIR", "'path=DIR' is a setting: what to train on comes first, as in folder,path=DIR"),
        ("imagenet,varant=tiny", "'varant': did you mean 'variant'"),
        ("imagenet,variant=tinny", "unknown variant 'tinny': did you mean 'tiny'"),
        ("imagenet,tiny", "'tiny' is not of the form name=value"),
        ("folder", "'folder' needs path="),
        ("folder,path=", "'folder' needs path="),
        ("tfds,variant=tiny", "'tfds' needs name="),
    ],
)
def test_mistakes_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        MODULES["biformer"].get_config(argument)


def test_the_published_recipe_of_biformer():
    drop_path = {"tiny": 0.1, "small": 0.15, "base": 0.4}
    for variant, rate in drop_path.items():
        config = MODULES["biformer"].get_config(f"imagenet,variant={variant}")
        assert (config.train_for, config.batch_size, config.optimizer.learning_rate, config.optimizer.weight_decay) == (
            "300 epochs",
            1024,
            1e-3,
            0.05,
        )
        assert config.model_options.drop_path == rate


@pytest.mark.parametrize(
    "argument", ["", "sort,length=5", "file,path=/some/where.tsv,tokenizer=FILE", "file,path=a,b,variant=base"]
)
def test_encoder_decoders(argument):
    config = MODULES["t5"].get_config(argument)
    assert set(config) == set(common.run())
    options = config.task.to_dict()
    takes = set(inspect.signature(tasks.lookup(options.pop("name"))).parameters)
    assert set(options) | set(tasks.SequenceToSequence.needs) == takes
    zoo.registry.configure(zoo.variant(config.model), {**config.model_options.to_dict(), "end_token": 1})


def test_arguments_of_encoder_decoders():
    get = MODULES["t5"].get_config
    assert get() == get("reverse")
    assert get("sort,length=5").task.dataset.to_dict() == {"name": "sort", "length": 5}
    assert get("file,path=a,b").task.dataset.to_dict() == {"name": "file", "path": "a,b"}
    assert get("file,path=a,tokenizer=b.json").task.tokenizer == "b.json"
    assert get("file,path=a,variant=small").model == "t5_small"
    with pytest.raises(ValueError, match="'file' needs path="):
        get("file")
    with pytest.raises(ValueError, match="unknown variant 'nanoo': did you mean 'nano'"):
        get("reverse,variant=nanoo")


@pytest.mark.parametrize("argument", ["", "tsp,points=10,test_points=12", "delaunay,points=10,variant=512"])
def test_pointer_networks(argument):
    config = MODULES["pointer_network"].get_config(argument)
    assert set(config) == set(common.run())
    task = tasks.create(**config.task.to_dict())
    assert task.problem == (argument or "convex_hull").partition(",")[0]
    zoo.registry.configure(zoo.variant(config.model), {**config.model_options.to_dict(), **task.model_options()})
    with pytest.raises(ValueError, match="unknown variant 'nanoo': did you mean 'nano'"):
        MODULES["pointer_network"].get_config("tsp,variant=nanoo")


@pytest.mark.parametrize("argument", ["", "force,axes=3,length=40,deltas=False,variant=vector"])
def test_sensors(argument):
    config = MODULES["hiss"].get_config(argument)
    assert set(config) == set(common.run())
    task = tasks.create(**config.task.to_dict())
    zoo.registry.configure(zoo.variant(config.model), {**config.model_options.to_dict(), **task.model_options()})
    assert MODULES["hiss"].get_config("csv,path=a,inputs=x+y,targets=z").task.inputs == "x+y"
    with pytest.raises(ValueError, match="unknown variant 'nanoo': did you mean 'nano'"):
        MODULES["hiss"].get_config("force,variant=nanoo")
