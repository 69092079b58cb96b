"""Extra tokens are inserted where stated, inherit what is known of their neighbors, and are removed again."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from layers import ExtraTokens, Tokens
from layers.tokens import Kept

X = np.arange(2 * 7, dtype=np.float32).reshape(2, 7, 1)
LEARNED = jnp.asarray([[-1.0], [-2.0]])
PLACES: dict[Any, list[int]] = {
    "first": [-1, -2, 0, 1, 2, 3, 4, 5, 6],
    "middle": [0, 1, 2, -1, -2, 3, 4, 5, 6],
    "last": [0, 1, 2, 3, 4, 5, 6, -1, -2],
    3: [0, 1, 2, -1, -2, 3, 4, 5, -1, -2, 6],
    8: [0, 1, 2, 3, 4, 5, 6],
}


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_put_and_taken_out(place: Any) -> None:
    extra = ExtraTokens(2, place)
    order = np.array(PLACES[place])
    rows = jnp.arange(7)[None]
    y, known = extra.put(
        X, LEARNED, Tokens(positions=10 + rows, segment_ids=rows // 4, roles=jnp.ones_like(rows)), role=5
    )
    np.testing.assert_array_equal(y[1, :, 0], np.where(order < 0, order, order + 7))
    own = order[order >= 0]
    for name, of_own in {"positions": own + 10, "segment_ids": own // 4, "roles": 1 + 0 * own}.items():
        np.testing.assert_array_equal(np.asarray(getattr(known, name))[0][order >= 0], of_own)
    assert np.asarray(known.roles)[0][order < 0].tolist() == [5] * int(np.sum(order < 0))
    # That of the token before, or of the first.
    near = np.maximum(np.maximum.accumulate(order), 0)
    np.testing.assert_array_equal(known.positions[0], near + 10)
    np.testing.assert_array_equal(known.segment_ids[0], near // 4)
    others, taken = extra.take(y)
    np.testing.assert_array_equal(others, X)
    np.testing.assert_array_equal(taken[0, :, 0], order[order < 0])


def test_masks() -> None:
    mask = jnp.arange(7) < jnp.array([[7], [4]])
    assert np.asarray(ExtraTokens(2).put(X, LEARNED, mask)[1].mask).tolist() == [[True] * 9, [True] * 6 + [False] * 3]
    woven = np.asarray(ExtraTokens(2, 3).put(X, LEARNED, mask)[1].mask)
    assert woven.tolist() == [[True] * 11, [True] * 6 + [False] * 5]
    with pytest.raises(ValueError, match="padding is trailing: extra tokens can't be last"):
        ExtraTokens(2, "last").put(X, LEARNED, mask)
    with pytest.raises(ValueError, match="or after every n tokens; got 'end'"):
        ExtraTokens(2, "end")  # type: ignore[arg-type]


def test_a_grid_has_them_as_its_prefix() -> None:
    tokens = Tokens(grid=(2, 3))  # with one prefix token already
    assert ExtraTokens(2).put(X, LEARNED, tokens)[1].prefix(9) == 3
    cells = jnp.asarray([[[0, 0], [0, 1], [1, 2]]])
    kept = Tokens(kept=Kept(cells, (2, 3)))
    _, known = ExtraTokens(2).put(X[:, :3], LEARNED, kept)
    assert known.prefix(5) == 2
    assert np.asarray(known.grid_places(5))[0].tolist() == [[0, 0], [0, 0], [0, 0], [0, 1], [1, 2]]
    for place in ("middle", 3):
        for before in (tokens, kept):
            x = X[:, : 7 if before is tokens else 3]
            after = ExtraTokens(2, place).put(x, LEARNED, before)[1]  # type: ignore[arg-type]
            assert after.grid is None
            assert after.kept is None


def test_put_among_tokens_that_are_read_after_others() -> None:
    """Cut anywhere, each row with its own count, the real ones are those of whole rows."""
    extra, total, counts = ExtraTokens(2, 3), 11, np.array([11, 7])
    x = np.arange(2 * total, dtype=np.float32).reshape(2, total, 1)
    whole = np.asarray(extra.put(x, LEARNED)[0])[..., 0]
    rows: list[list[float]] = [[], []]
    done, rng = np.zeros(2, int), np.random.default_rng(0)
    while (done < counts).any():
        new = np.minimum(rng.integers(0, 6, 2), counts - done)
        places = done[:, None] + np.arange(5)
        piece = np.take_along_axis(x, np.minimum(places, total - 1)[..., None], 1)
        known = Tokens(jnp.asarray(np.arange(5) < new[:, None]), segment_ids=jnp.asarray(places // 3, jnp.int32))
        y, known, at = extra.put_next(piece, LEARNED, jnp.asarray(places), known)
        assert y.shape == (2, 9, 1)
        for row in range(2):
            mask = np.asarray(known.mask)[row]
            read = np.asarray(y)[row, mask, 0]
            np.testing.assert_array_equal(read[np.asarray(at)[row, : new[row]]], piece[row, : new[row], 0])
            words = np.where(read < 0, np.nan, read - total * row)
            np.testing.assert_array_equal(  # those put in belong to the document of the token before
                np.asarray(known.segment_ids)[row, mask][read >= 0], words[read >= 0] // 3
            )
            rows[row] += read.tolist()
        done += new
    np.testing.assert_array_equal(rows[0], whole[0])
    np.testing.assert_array_equal(rows[1], whole[1, :11])
    with pytest.raises(ValueError, match="after every n tokens, not first"):
        ExtraTokens(1).put_next(x, LEARNED[:1], jnp.zeros((2, total), jnp.int32))
