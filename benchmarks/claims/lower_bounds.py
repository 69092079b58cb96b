"""Lower bounds of forget gates: with bounds that rise from layer to layer HGRN recalls over longer delays than without.

Z. Qin et al., arXiv:2311.04823, section 3.2 and table 8 (ablation). Selective copying (arXiv:2312.00752): four tokens
out of 14 stand at random places among filler tokens and are asked for at the end. Models of three layers of 64 channels
without channel mixing, trained on 32 tokens: HGRN with learned lower bounds, initialized at 0, 1/3 and 2/3; HGRN
without; and a GRU. "at_n" is the accuracy for sequences of n tokens. "half_life_i" is the number of tokens in which the
memory of layer i halves, from the mean log forget gate of each channel on examples of 512 tokens, the median over
channels. Medians of three seeds: up to 128 tokens the bounds help (0.904 and 0.764 at 32, 0.789 and 0.711 at 128), from
256 on they do not (0.568 and 0.600, 0.398 and 0.451 at 512). The last layer's half-lives are 15 to 96 tokens with
bounds and about one without. The GRU is ahead of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

if TYPE_CHECKING:
    from flax import nnx

PAPER = (185,)
LENGTHS = (32, 64, 128, 256, 512)
BOUNDED, FREE = "lower bounds", "no bounds"
KINDS: dict[str, dict[str, Any]] = {
    BOUNDED: {},
    FREE: {"mixer": {"name": "hgrn", "lower_bound": 0.0, "norm_epsilon": 1e-6}},
    "GRU": {"mixer": "gru"},
}


def half_lives(model: Any, tokens: Any) -> Any:
    """Half-life of each layer's memory in tokens (depth,), the median over channels."""
    import jax.numpy as jnp

    from layers.linear_attention.hgrn import forget_gate

    bounds, lives = model.per_block(), []
    inputs = [model.embedding(tokens), *model.features(tokens, range(len(model.blocks) - 1))]
    for index, x in enumerate(inputs):
        block = model.blocks[index]
        decay, _ = forget_gate(block.mixer.forget(block.mixer_norm(x)), 0.0 if bounds is None else bounds[index])
        lives.append(jnp.median(jnp.log(0.5) / jnp.minimum(jnp.mean(decay, (0, 1)), -1e-6)))
    return jnp.stack(lives)


def contest(quick: bool) -> Contest:
    task = {"name": "selective_copying", "length": 16 if quick else LENGTHS[0], "memorize": 2 if quick else 4}
    task |= {"num_eval": 16 if quick else 128}
    size = {"features": 16 if quick else 64, "depth": 2 if quick else 3, "num_heads": 1, "mlp": None}
    size |= {"embedding_std": 0.2}
    lengths = (16, 24) if quick else LENGTHS

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        """The accuracy at each length, and the half-lives of HGRN's layers."""
        import jax
        import numpy as np
        from flax import nnx

        import tasks

        model.eval()
        graph, arrays = nnx.split(model)
        answers = jax.jit(lambda arrays, tokens: nnx.merge(graph, arrays)(tokens).argmax(-1))
        figures, options = {}, dict(contestant.task)
        for length in lengths:
            examples = tasks.create(**{**options, "test_length": length}).examples("test")
            rows = [examples.get(index, None) for index in range(len(examples))]
            tokens, targets, asked = (
                np.stack([row[name] for row in rows]) for name in ("tokens", "targets", "answers")
            )
            figures[f"at_{length}"] = float((np.asarray(answers(arrays, tokens)) == targets)[asked > 0].mean())
        if contestant.label != "GRU":
            lives = nnx.jit(half_lives)(model, tokens[:32])
            figures |= {f"half_life_{index}": float(life) for index, life in enumerate(lives)}
        return figures

    return Contest(
        contestants=[Contestant(label, "hgrn_nano", task, {**size, **options}) for label, options in KINDS.items()],
        steps=4 if quick else 1000,
        batch_size=8 if quick else 16,
        learning_rate=5e-3,
        evaluations=2 if quick else 4,
        figures=("accuracy", *(f"at_{length}" for length in lengths)),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """At 128, 256 and 512 tokens, four, eight and sixteen times the training length, the accuracy of HGRN is each time
    higher with lower bounds than without.
    """
    return all(medians(rows, f"at_{n}")[BOUNDED] > medians(rows, f"at_{n}")[FREE] for n in LENGTHS[2:])


def run(arguments: list[str] | None = None) -> None:
    main("lower_bounds", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
