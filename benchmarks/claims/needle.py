"""A needle in a haystack: trained at up to 64 tokens, Titans' memory finds it at up to 64 times that length better than
recurrences and a window do.

A. Behrouz et al., arXiv:2501.00663, section 5.3: there the needle is a pass key among up to 16,384 tokens, on which
Titans keep their accuracy and Mamba-2 and DeltaNet lose it. Ours is the token that follows a special one, which occurs
once among random tokens (the induction heads of arXiv:2312.00752). The models have the same number of parameters within
2 %: the memory alone (LMM), memory as context (MAC, segments of 32 tokens), both with one gradient for each token
(chunk 1), Mamba, Gated DeltaNet, and a transformer with a window of 64. Long sequences are read in pieces with a
recurrent state. The verdict is on LMM.

LMM learns the task with two seeds of three, as Gated DeltaNet does, and none of the models finds the needle at 4096
tokens: the highest median there is Mamba's (0.25); LMM's is 0.03, and 0.22 where its memory does not forget. The
paper's ordering does not show at this size. To learn recall at all a memory needs one gradient for each token: with the
gradients of 16 tokens taken at the same weights, LMM stayed at chance for 1000 steps. MAC and the transformer, the two
that see the previous token by attention and not by a convolution, had not begun to learn when the steps ended: their
loss is that of guessing among the symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.induction_heads import accuracy_by_state
from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (51,)


if TYPE_CHECKING:
    from flax import nnx

LENGTHS = (64, 256, 1024, 4096)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "titans_lmm": ("titans_lmm_nano", {"chunk": 1, "hidden": 300, "tied": True}),
    "titans_lmm, no forgetting": ("titans_lmm_nano", {"chunk": 1, "forget": False, "hidden": 301, "tied": True}),
    "mamba": ("mamba_nano", {"depth": 5, "state_dim": 22}),
    "gated_delta_net": ("gated_delta_net_nano", {"hidden": 344}),
    "transformer, window 64": ("transformer_nano", {"window": 64, "hidden": 372}),
    "titans_mac": ("titans_mac_nano", {"segment": 32, "chunk": 1, "tied": True}),
}


def contest(quick: bool) -> Contest:
    task = {
        "name": "induction_heads",
        "length": 32 if quick else 64,
        "shortest_length": 8,
        "test_length": 64,
        "num_eval": 16 if quick else 256,
    }
    size = {"features": 16, "depth": 1, "num_heads": 2} if quick else {"features": 64, "num_heads": 2}
    lengths, models = (LENGTHS[:1], dict(list(MODELS.items())[:2])) if quick else (LENGTHS, MODELS)

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        return {
            f"at_{n}": accuracy_by_state(model, dict(contestant.task), n, 8 if quick else 128 if n < 1024 else 32)
            for n in lengths
        }

    return Contest(
        contestants=[
            Contestant(label, model, task, {"depth": 2, **options, **size})
            for label, (model, options) in models.items()
        ],
        steps=4 if quick else 800,
        batch_size=8,
        learning_rate=3e-3,
        evaluations=2 if quick else 10,
        figures=tuple(f"at_{n}" for n in lengths),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """titans_lmm finds the needle at the greatest length with an accuracy of at least 0.9, above that of every model
    other than Titans.
    """
    found = medians(rows, f"at_{LENGTHS[-1]}")
    return found["titans_lmm"] >= 0.9 and all(
        found["titans_lmm"] > value for label, value in found.items() if not label.startswith("titans")
    )


def run(arguments: list[str] | None = None) -> None:
    main("needle", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
