"""The model zoo: ``zoo.create(name)``, ``zoo.list_models()``, ``zoo.preprocess(model)``."""

from zoo import language as language
from zoo import vision as vision
from zoo.creation import create, preprocess
from zoo.registry import ModelConfig, Preprocess, list_models, register, register_family, variant
from zoo.version import __version__

__all__ = ["ModelConfig", "Preprocess", "__version__", "create", "list_models", "preprocess", "register", "register_family", "variant"]
