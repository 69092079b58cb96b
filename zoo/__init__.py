"""The model zoo: ``zoo.create(name)``, ``zoo.list_models()``, ``zoo.summary(name)``, ``zoo.predict(model, images)``."""

from zoo import language as language
from zoo import vision as vision
from zoo.creation import create, preprocess
from zoo.inspection import capture
from zoo.prediction import predict
from zoo.registry import ModelConfig, Preprocess, list_models, register, register_family, variant
from zoo.summaries import Summary, summary
from zoo.version import __version__

__all__ = [
    "ModelConfig",
    "Preprocess",
    "Summary",
    "__version__",
    "capture",
    "create",
    "list_models",
    "predict",
    "preprocess",
    "register",
    "register_family",
    "summary",
    "variant",
]
