"""What the scripts beside this file share: they run authors' models on images and record outputs in a small .npz.

    python -m tests.references.NAME CLONE    writes tests/references/NAME.npz from a checkout of the authors' code

Only numbers are kept, and of large arrays a part: ``KEPT`` of a script indexes what its names begin with. Weights and
images follow from seeds (:mod:`tests.references.seeded`). "about" holds as JSON the repository, its commit, names and
shapes of the weights, and parameter counts of the published models.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded


def stand_in(modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Modules of these names and attributes, for what authors import and a recording does not need."""
    for name, attributes in modules.items():
        stub = sys.modules[name] = types.ModuleType(name)
        vars(stub).update(attributes)


def stand_in_timm() -> None:
    """What authors import from the timm of their time; initial values are replaced."""
    from tests.references.live import timm

    layers = {name: getattr(timm.layers, name) for name in ("DropPath", "to_2tuple")}
    stand_in(
        {
            "timm.models.helpers": {"load_pretrained": None},
            "timm.models.layers": {**layers, "trunc_normal_": lambda *_, **__: None},
            "timm.models.registry": {"register_model": lambda function: function},
        }
    )


def module_of(path: Path) -> Any:
    """The module in one file, without the package that it is of."""
    spec: Any = importlib.util.spec_from_file_location(f"authors_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count(model: Any) -> int:
    """Parameters of a PyTorch module."""
    return sum(parameter.numel() for parameter in model.parameters())


def give_weights(model: Any, seed: int, leave: Sequence[str] = (), **options: Any) -> dict[str, tuple[int, ...]]:
    """Gives a PyTorch model the weights of ``seed``, all but those with one of ``leave`` in their names; returns the
    shapes.
    """
    from tests.references.live import torch

    state = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if not any(part in name for part in leave)}
    made = {name: torch.from_numpy(array) for name, array in seeded.weights(shapes, seed, **options).items()}
    model.load_state_dict({**state, **made})
    model.eval()
    return shapes


def outputs(
    model: Any,
    parts: Sequence[Any],
    pixels: np.ndarray,
    keep: Mapping[str, Any],
    features: Callable[[Any], np.ndarray] = lambda out: out.detach().numpy(),
) -> dict[str, np.ndarray]:
    """Logits, outputs of the modules ``parts``, and the gradient of ``sum(sin(logits))`` with respect to the images.

    Args:
      model: in PyTorch.
      parts: of the model, whose outputs are "features/0" and so on.
      pixels: (batch, height, width, channels).
      keep: index of what is kept, by name.
      features: from a part's output to an array, channels last.
    """
    from tests.references.live import outputs_and_gradient

    seen: list[np.ndarray] = []
    hooks = [part.register_forward_hook(lambda _, __, out: seen.append(features(out).copy())) for part in parts]
    (logits,), gradient = outputs_and_gradient(lambda x: [model(x)], pixels)
    for hook in hooks:
        hook.remove()
    arrays = {"logits": logits, "gradient": gradient, **{f"features/{i}": array for i, array in enumerate(seen)}}
    return kept(arrays, keep)


def output_and_gradient(name: str, call: Callable[[Any], Any], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """``name/out``, the output of ``call`` for a tensor of ``tokens``, and ``name/gradient``, that of ``sum(sin(out))``
    with respect to them.
    """
    from tests.references.live import torch

    x = torch.from_numpy(tokens).requires_grad_()
    out = call(x)
    torch.sin(out).sum().backward()
    return {f"{name}/out": out.detach().numpy(), f"{name}/gradient": x.grad.numpy()}


def channels_last(out: Any) -> np.ndarray:
    """An output (batch, channels, height, width) of PyTorch."""
    return out.detach().numpy().transpose(0, 2, 3, 1)


def kept(arrays: Mapping[str, np.ndarray], keep: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parts of ``arrays`` that a recording has."""
    return {name: array[keep.get(name.partition("/")[0], ...)] for name, array in arrays.items()}


def under(case: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of one case of a recording that has several."""
    return {f"{case}/{name}": array for name, array in arrays.items()}


def commit(clone: Path) -> str:
    """Of a checkout."""
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def about(repository: str, clone: Path, **more: Any) -> dict[str, np.ndarray]:
    """The description of a recording."""
    import torch

    found = {"repository": repository, "commit": commit(clone), "torch": torch.__version__, **more}
    return {"about": np.array(json.dumps(found))}


def write(path: Path, record: Callable[[Path], dict[str, np.ndarray]]) -> None:
    """Writes what ``record`` finds in the checkout that the command names."""
    np.savez_compressed(path, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{path}: {path.stat().st_size} bytes")


class Recording:
    """A file as it was written: ``about``, and the arrays and weights of a case."""

    def __init__(self, script: types.ModuleType):
        self.script: Any = script
        with np.load(self.script.PATH) as file:
            self.all = dict(file)
        self.about = json.loads(str(self.all.pop("about")))

    def arrays(self, case: str = "") -> dict[str, np.ndarray]:
        """What was recorded of a case, by the names within it."""
        start = f"{case}/" if case else ""
        return {name.removeprefix(start): array for name, array in self.all.items() if name.startswith(start)}

    def weights(self, case: str = "", **options: Any) -> dict[str, np.ndarray]:
        """The weights that a case was recorded with, by the authors' names."""
        shapes = self.about["shapes"]
        shapes = next((shapes[name] for name in (case, case.partition("/")[0]) if name in shapes), shapes)
        return seeded.weights({name: tuple(shape) for name, shape in shapes.items()}, self.script.SEED, **options)

    def images(self, case: str = "") -> np.ndarray:
        """The images of a case, (batch, height, width, channels)."""
        return seeded.images(self.script.IMAGES[case], self.script.SEED)

    def named(self) -> str:
        """The repository and its commit."""
        return f"{self.about['repository']} {self.about['commit'][:8]}"
