"""Reference implementations that run here: made with random weights, compared with ours output by output.

Importing this module skips the calling test module where PyTorch, timm or transformers is not installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import zoo
from layers import flatten
from tests.references.comparing import ours_and_gradient, relative, same_bits
from zoo.plan import plan
from zoo.registry import abstract, variant
from zoo.weights import export

torch = pytest.importorskip("torch", reason="the reference implementation needs PyTorch")


def _import_timm() -> Any:
    """timm imports torchvision, whose compiled operators may be built for another PyTorch: timm only needs two of them
    to be declared.
    """
    found = importlib.util.find_spec("torchvision")
    if found is not None and found.origin is not None:
        try:
            torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
        except OSError:
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                with contextlib.suppress(RuntimeError):
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torch._torchvision_schemas = library  # they last as long as the library object
    return pytest.importorskip("timm", reason="the reference implementation needs timm")


timm = _import_timm()


class _Unchanged(torch.overrides.TorchFunctionMode):
    """What would change an array in place leaves it: of shapes alone, initializers take most of the time."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        given = kwargs or {}
        if name.endswith("_") and not name.startswith("_") and name != "requires_grad_":
            return args[0] if args else next(iter(given.values()))
        return function(*args, **given)


@contextlib.contextmanager
def without_arrays() -> Iterator[None]:
    """PyTorch's models are made with names and shapes, and nothing is allocated."""
    with torch.device("meta"), _Unchanged():
        yield


def randomize(reference: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Gives every parameter and statistic of a PyTorch module a random value of its usual size; returns its state dict.

    Fresh modules have zeros and ones where a mistake would not show: biases, norms, layer scales, tokens.
    """
    rng = np.random.default_rng(seed)
    for name, value in reference.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = rng.standard_normal(tuple(value.shape)).astype(np.float32)
        if name.endswith("running_var"):
            noise = 1 + 0.2 * np.abs(noise)
        elif value.ndim >= 2 and name.endswith("weight"):
            noise *= 0.7 * np.prod(value.shape[1:]) ** -0.5
        elif name.rsplit(".", 1)[-1] in ("weight", "gamma", "lambda1"):
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.3
        value.copy_(torch.from_numpy(noise))
    reference.eval()
    return {name: value.numpy().copy() for name, value in reference.state_dict().items()}


def released_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a model would be saved with, under its family's first naming."""
    rules = next(iter(variant(model.variant).rules.values()))
    entries = plan(rules, {name: tuple(leaf.shape) for name, leaf in flatten(model).items()}, model.config)
    return {name: shape for line in entries for name, shape in line.released_shapes().items()}


def assert_listed_as_by_timm(name: str, reference: str, default_cfgs: Mapping[str, Any], *, names: bool = True) -> None:
    """Parameter count and released checkpoints of a variant are those of timm's model ``reference``, and ``names`` and
    shapes; nothing is allocated."""
    entry = variant(name)
    with without_arrays():
        theirs = timm.create_model(reference)
    if names:
        ours: Any = abstract(entry, entry.config)
        ours.variant = name
        assert released_shapes(ours) == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert sum(p.numel() for p in theirs.parameters()) == entry.parameters
    tagged = {tag: cfg for tag, cfg in default_cfgs[reference].cfgs.items() if tag != "untrained"}
    assert list(entry.releases) == list(tagged)
    for tag, release in entry.releases.items():
        cfg = tagged[tag]
        assert release.source == f"hf://timm/{reference}.{tag}"
        assert (release.classes, release.license) == (cfg.num_classes, cfg.license or "unstated")
        values = {"mean": cfg.mean, "std": cfg.std, "interpolation": cfg.interpolation}
        assert release.preprocess == {**values, "crop_fraction": cfg.crop_pct, "crop_mode": cfg.crop_mode or "center"}
        assert (release.image_size or entry.config.image_size) == cfg.input_size[1]  # type: ignore[attr-defined]


def released(reference: Any, folder: Path) -> dict[str, np.ndarray]:
    """The names on disk of a model of transformers, as ``save_pretrained`` writes them; in memory some differ."""
    from safetensors.numpy import load_file

    reference.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def images(*shape: int, seed: int = 1) -> np.ndarray:
    """Standard normal images, (batch, height, width, channels)."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def logits_of(reference: Any, pixels: np.ndarray) -> np.ndarray:
    """Logits of a PyTorch model for channels-last ``pixels``."""
    with torch.no_grad():
        return reference(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()


def assert_matches_timm(
    name: str,
    pair: tuple[Any, Any, Mapping[str, np.ndarray]],
    pixels: np.ndarray,
    record_property: Callable[[str, Any], None],
    *,
    tolerance: float,
    gradient: bool = True,
    indices: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
) -> None:
    """Logits, maps and, with ``gradient``, the gradient of the input are timm's, and its names come back bit for bit;
    the difference is recorded.

    Args:
      name: of the row in the table of comparisons.
      pair: timm's model, ours, and timm's state, which is loaded into ours.
      indices, blocks: of the maps: timm's, and ours; None are those of all stages.
    """
    theirs, ours, state = pair
    zoo.load(ours, state)
    options = {} if indices is None else {"indices": list(indices)}
    ours_of = () if blocks is None else (blocks,)

    def of_timm(x: Any) -> list[Any]:
        maps = theirs.forward_intermediates(x, norm=False, intermediates_only=True, **options)
        return [theirs(x), *(feature.permute(0, 2, 3, 1) for feature in maps)]

    difference = largest_difference(
        of_timm, lambda x: [ours(x), *ours.features(x, *ours_of)], pixels, gradient=gradient
    )
    about = {"reference": f"timm {timm.__version__}", "kind": "live", "mapped": len(state)}
    record_property("parity", {**about, "architecture": name, "difference": difference})
    assert difference < tolerance
    assert same_bits(export(ours, naming="timm"), state)


def largest_difference(
    theirs: Callable[[Any], list[Any]], ours: Callable[[Any], list[Any]], pixels: np.ndarray, *, gradient: bool
) -> float:
    """Of outputs of a PyTorch function and of ours, and with ``gradient`` of the gradient, as in
    :func:`outputs_and_gradient`.
    """
    if gradient:
        (expected, slope), (found, our_slope) = outputs_and_gradient(theirs, pixels), ours_and_gradient(ours, pixels)
        pairs = zip([*found, our_slope], [*expected, slope], strict=True)
    else:
        with torch.no_grad():
            outputs = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        pairs = zip(jax.jit(ours)(pixels), [output.numpy() for output in outputs], strict=True)
    return max(relative(a, b) for a, b in pairs)


def outputs_and_gradient(call: Callable[[Any], list[Any]], pixels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """A PyTorch function's outputs for channels-last ``pixels``, and the gradient of ``sum(sin(output))`` of the first
    with respect to them.
    """
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).requires_grad_()
    outputs = call(x)
    torch.sin(outputs[0]).sum().backward()
    return [output.detach().numpy() for output in outputs], x.grad.numpy().transpose(0, 2, 3, 1)
