"""What can replace the convolution in ResNet's bottlenecks, and what is refused; test_resnet_reference.py compares
numbers.
"""

from __future__ import annotations

from typing import Any

import pytest

import zoo
from layers import Mixer
from layers.linear import Conv
from layers.squeeze_excite import SqueezeExcite
from zoo.registry import abstract, configure, variant


def _blocks(**options: Any) -> list[Any]:
    entry = variant("resnet_nano")
    model: Any = abstract(entry, configure(entry, options))
    return [block for stage in model.stages for block in stage.blocks]


def test_a_pattern_leaves_the_convolutions_that_it_does_not_name() -> None:
    """BoTNet: attention in the last stage, whose first block averages what it gives."""
    kinds = [type(block.mixer) for block in _blocks(pattern={"1.every": "attention"})]
    assert kinds[:2] == [Conv, Conv]
    assert all(issubclass(kind, Mixer) for kind in kinds[2:])
    assert [block.pool for block in _blocks(mixer="attention")] == [1, 1, 2, 1]
    assert [block.pool for block in _blocks()] == [1, 1, 1, 1]


def test_a_gate_is_in_every_block() -> None:
    gates = [block.gate for block in _blocks(gate={"name": "squeeze_excite", "hidden": 4})]
    assert {type(gate) for gate in gates} == {SqueezeExcite}
    assert {gate.squeeze.kernel.shape[1] for gate in gates} == {4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"block": "basic", "mixer": "attention"},
            'basic blocks have no place for a mixer: it stands between the 1x1 convolutions of block="bottleneck"',
        ),
        ({"block": "wide"}, 'block is "bottleneck" or "basic", got \'wide\''),
        ({"shared": True}, "the first block of a ResNet's stage has another shape than the rest"),
        ({"gate": "squeeze_exite"}, "unknown gate 'squeeze_exite': did you mean 'squeeze_excite'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.create("resnet_nano", **options)
