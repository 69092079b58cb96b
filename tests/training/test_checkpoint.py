"""Checkpoints: what is saved comes back; damage of every kind is noticed and the last good one is used."""

from __future__ import annotations

import itertools
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers.state import flatten
from tests.tiers import tiered
from tests.training import toy
from training import optimizer as optimizers
from training.checkpoint import Best, CheckpointError, Checkpoints
from training.step import initial_state


def state_of(value: float, ema: float = 0.9):
    model = toy.ToyModel(4096)  # so wide that Orbax puts its arrays in files of their own, which carry no checksum
    optimizer = optimizers.create(model, flatten(model, nnx.Param), {"name": "adamw", "learning_rate": 0.1})
    state = initial_state(model, optimizer, ema)
    moved = jax.tree.map(lambda x: x + jnp.asarray(value, x.dtype) if x.dtype != bool else x, state)
    return {**moved, "step": jnp.int32(value)}


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(directory, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(state_of(step), step)
    checkpoints.save_best(state_of(2), 2, 0.75)
    checkpoints.close()
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_the_newest_are_kept_and_come_back(directory):
    checkpoints = Checkpoints(directory, keep=2)
    assert checkpoints.steps() == [2, 3]
    state, step = checkpoints.restore(state_of(0))
    assert step == 3
    assert equal(state, state_of(3))
    assert checkpoints.best() == Best(2, 0.75)
    weights, step = checkpoints.restore_weights("best", state_of(0))
    assert step == 2
    assert equal(weights, {name: state_of(2)[name] for name in weights})


def test_saving_is_of_the_moment_though_the_arrays_are_donated_afterwards(tmp_path):
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x if x.dtype == bool else x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = advance(state_of(4))
    checkpoints.save(state, 5)
    for _ in range(20):
        state = advance(state)
    checkpoints.wait()
    restored = checkpoints.restore(state_of(0))[0]
    for name, value in state_of(5)["params"].items():
        np.testing.assert_allclose(restored["params"][name], value, rtol=1e-6, atol=1e-6)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


QUICK = {("weights", "flipped"), ("weights", "missing"), ("optimizer", "truncated")}


@pytest.mark.parametrize(
    ("item", "how"),
    tiered(itertools.product(("weights", "optimizer"), ("missing", "truncated", "flipped")), QUICK.__contains__),
)
def test_damage_is_noticed_and_the_one_before_used(directory, item, how, capsys):
    # Every data file: Orbax may leave some that the checkpoint does not refer to.
    for path in [p for p in (directory / "checkpoints/3" / item).rglob("d/*") if p.is_file()]:
        damage(path, how)
    state, step = Checkpoints(directory, keep=2).restore(state_of(0))
    assert step == 2
    assert equal(state, state_of(2))
    assert "checkpoint 3 can't be read" in capsys.readouterr().err
    assert (directory / "unreadable/3").is_dir()
    again = Checkpoints(directory, keep=2)
    again.save(state_of(3), 3)
    again.close()
    assert again.steps() == [2, 3]


def test_damage_to_all_is_refused_and_nothing_removed(directory):
    for meta in directory.glob("checkpoints/*/meta/metadata"):
        meta.write_text("{")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint under .* can be read \(step 3: .*; step 2: .*remove that folder"
    ):
        Checkpoints(directory, keep=2).restore(state_of(0))
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == ["2", "3"]


def test_a_missing_checkpoint_is_named_with_those_there_are(directory):
    with pytest.raises(CheckpointError, match=r"no checkpoint '7' under .*; there are: 2, 3"):
        Checkpoints(directory, read_only=True).restore_weights("7", state_of(0))


def test_reading_where_nothing_was_saved_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="the run has saved nothing yet"):
        Checkpoints(tmp_path, read_only=True)


def test_a_fresh_directory_has_none(tmp_path):
    assert Checkpoints(tmp_path).restore(state_of(0)) is None
    assert Checkpoints(tmp_path).best() is None


def test_a_full_disk_is_one_message_and_what_was_saved_remains(directory):
    checkpoints = Checkpoints(directory, keep=2)
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))  # writing beyond it fails as on a full disk
    try:
        checkpoints.save(state_of(4), 4)
        with pytest.raises(CheckpointError, match=r"can't write checkpoints under .*Free space"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert Checkpoints(directory, keep=2).restore(state_of(0))[1] == 3


def test_a_place_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"can't write checkpoints under .*file"):
        Checkpoints(tmp_path / "file")
