"""Overwriting: where a key is stored twice, an mLSTM recalls the last value better than gated linear attention, and
that better than linear attention.

M. Beck et al., arXiv:2405.04517, section 1: LSTMs could not revise their storage decisions, and exponential gating lets
mLSTM do so. Multi-query associative recall (S. Arora et al., arXiv:2312.04927) in which every key is stored twice with
different values, in random order, and the last value is asked for. The models are those of
:mod:`benchmarks.claims.state_size`: only the last layer has the mixer, and all mixers have keys of the same size. The
gated delta rule, which removes the value a key had, is shown and not part of the verdict. Medians of three seeds: 0.713
with mLSTM, 0.229 with gated linear attention and 0.094 with linear attention. The gated delta rule learns the task
fully with two seeds, and a quarter of it with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians
from benchmarks.claims.state_size import framed

MIXERS: dict[str, dict[str, Any]] = {
    "mLSTM": {"name": "mlstm", "key_expansion": 1.0, "input_bias": 0.0},
    "GLA": {"name": "gated_linear_attention", "key_expansion": 1.0},
    "linear attention": {"name": "linear_attention", "use_bias": False},
    "gated delta net": {"name": "gated_delta_net", "conv_size": None},
}


def contest(quick: bool) -> Contest:
    pairs = 2 if quick else 4
    task = {"name": "multi_query_recall", "length": 6 * pairs, "test_length": 6 * pairs, "pairs": pairs}
    task |= {"vocab_size": 64, "overwritten": pairs, "num_eval": 16 if quick else 128}
    return Contest(
        contestants=[
            Contestant(label, "transformer_nano", task, framed(mixer, quick)) for label, mixer in MIXERS.items()
        ],
        steps=4 if quick else 1500,
        batch_size=8 if quick else 32,
        learning_rate=1e-2,
        evaluations=2 if quick else 6,
        figures=("accuracy",),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """The accuracy of mLSTM is above that of GLA, and GLA's is above that of linear attention."""
    accuracy = medians(rows, "accuracy")
    return accuracy["mLSTM"] > accuracy["GLA"] > accuracy["linear attention"]


def run(arguments: list[str] | None = None) -> None:
    main("overwriting", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
