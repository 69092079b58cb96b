"""How tokens are drawn, against transformers' own processors of logits and its generation."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.references.live import torch
from zoo.token_sampling import Sampling, Settings

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")
pytestmark = [pytest.mark.reference, pytest.mark.full]

VOCABULARY = 61
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "features": 32, "depth": 2, "state_dim": 8, "step_rank": 5}


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("min_p", [None, 0.02, 0.3])
@pytest.mark.parametrize("penalty", [None, 0.8, 1.7])
def test_scores_are_those_of_transformers(temperature: float, min_p: float | None, penalty: float | None) -> None:
    rng = np.random.default_rng(0)
    logits, tokens = 3 * rng.standard_normal((4, VOCABULARY)).astype(np.float32), rng.integers(0, VOCABULARY, (4, 9))
    process = transformers.LogitsProcessorList()
    if penalty is not None:
        process.append(transformers.RepetitionPenaltyLogitsProcessor(penalty))
    process.append(transformers.TemperatureLogitsWarper(temperature))
    if min_p is not None:
        process.append(transformers.MinPLogitsWarper(min_p))
    expected = process(torch.from_numpy(tokens), torch.from_numpy(logits)).numpy()
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, -1)
    sampling = Sampling(greedy=False, relative=min_p is not None, penalized=penalty is not None)
    found = np.asarray(
        sampling.scores(
            jnp.asarray(logits), Settings(temperature, 1.0, min_p or 1.0, penalty or 1.0, ()), jnp.asarray(seen)
        )
    )
    assert min_p is None or 0 < np.isinf(expected).sum() < expected.size
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_penalized_continuation_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 5}
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**common, pad_token_id=0, eos_token_id=None))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.eval()
    ours = zoo.create(
        "mamba_nano", weights={name: value.detach().numpy() for name, value in theirs.state_dict().items()}, **SIZES
    )
    prompt = [[5, 9, 2, 44, 17, 9, 2]]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 16}
    plain, penalized = (
        theirs.generate(torch.tensor(prompt), repetition_penalty=p, **options)[0, 7:].tolist() for p in (1.0, 1.4)
    )
    assert plain != penalized
    assert zoo.generate(ours, prompt, 16, temperature=0).rows() == [plain]
    assert zoo.generate(ours, prompt, 16, temperature=0, repetition_penalty=1.4).rows() == [penalized]
