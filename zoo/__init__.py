"""The model zoo: ``zoo.create(name)``, ``zoo.list_models()``, ``zoo.summary(name)``, ``zoo.predict(model, images)``,
``zoo.generate(model, prompt, max_new_tokens)``, ``zoo.export(model)``."""

from primitives.garbage import none_collected

with none_collected():
    from layers.lora import add_lora, merge_lora
    from zoo import language as language
    from zoo import series as series
    from zoo import vision as vision
    from zoo.adapters import load_adapters, save_adapters
    from zoo.beams import Beams, beam_search
    from zoo.creation import create, preprocess
    from zoo.dynamics import Dynamics, dynamics
    from zoo.exporting import ExportError, export
    from zoo.extreme_tokens import dormancy, residual_peaks, value_drains
    from zoo.figures import (
        draw_clusters,
        draw_connections,
        draw_fields_of_view,
        draw_maps,
        draw_matrix,
        draw_over_image,
        draw_receptive_fields,
        draw_routes,
        draw_trees,
    )
    from zoo.generation import Generation, generate, stream
    from zoo.inspection import (
        attention_maps,
        attention_rollout,
        attention_sinks,
        capture,
        dependency_trees,
        fields_of_view,
        materialize,
        receptive_field,
    )
    from zoo.language.lsg import convert_to_lsg
    from zoo.prediction import predict
    from zoo.publishing import push_to_hub, save_folder
    from zoo.quantization import quantize
    from zoo.registry import ModelConfig, Preprocess, list_models, register, register_family, variant
    from zoo.reparameterization import reparameterize
    from zoo.summaries import Summary, summary
    from zoo.version import __version__
    from zoo.weights import WeightsError, load, save

__all__ = [
    "Beams",
    "Dynamics",
    "ExportError",
    "Generation",
    "ModelConfig",
    "Preprocess",
    "Summary",
    "WeightsError",
    "__version__",
    "add_lora",
    "attention_maps",
    "attention_rollout",
    "attention_sinks",
    "beam_search",
    "capture",
    "convert_to_lsg",
    "create",
    "dependency_trees",
    "dormancy",
    "draw_clusters",
    "draw_connections",
    "draw_fields_of_view",
    "draw_maps",
    "draw_matrix",
    "draw_over_image",
    "draw_receptive_fields",
    "draw_routes",
    "draw_trees",
    "dynamics",
    "export",
    "fields_of_view",
    "generate",
    "list_models",
    "load",
    "load_adapters",
    "materialize",
    "merge_lora",
    "predict",
    "preprocess",
    "push_to_hub",
    "quantize",
    "receptive_field",
    "register",
    "register_family",
    "reparameterize",
    "residual_peaks",
    "save",
    "save_adapters",
    "save_folder",
    "stream",
    "summary",
    "value_drains",
    "variant",
]
