"""Batches for the loop: the global batch at a step is a pure function of (seed, step).

Row j of the batch at step t is number k = t * batch_size + j of an endless sequence: epoch k // N, example
``shuffle(k % N; seed, epoch)``, augmented with a generator keyed by (seed, epoch, example). A stream has lanes in place
of examples: row j of the batch at step t is part t of lane j of batch_size (:class:`tasks.Streams`). A batch depends on
nothing else, so that workers, accumulation, processes and restarts can't change it. Workers are threads, each of which
computes whole batches ahead of their use.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from grain.experimental import index_shuffle

from tasks import Examples, Streams

Batch = dict[str, np.ndarray]
_WORD = 2**32
_ROUNDS = 4
_SHUFFLE, _AUGMENT = 0x5348, 0x4155  # keep the random numbers of order and augmentation apart


def example_at(position: int, size: int, seed: int) -> tuple[int, int]:
    """(epoch, example) of a position in the endless shuffled sequence over ``size`` examples."""
    epoch, offset = divmod(position, size)
    order = np.random.SeedSequence([seed % _WORD, epoch, _SHUFFLE]).generate_state(1)[0]
    return epoch, index_shuffle(offset, max_index=size - 1, seed=int(order), rounds=_ROUNDS)


def augmentation(seed: int, epoch: int, example: int) -> np.random.Generator:
    """The generator that augments ``example`` in ``epoch``: a counter-based random stream, disjoint from all others."""
    return np.random.Generator(np.random.Philox(key=[seed % _WORD, _AUGMENT], counter=[0, 0, epoch, example]))


def train_batch(
    examples: Examples, step: int, batch_size: int, seed: int, accumulate: int = 1, process: int = 0, processes: int = 1
) -> Batch:
    """This process's rows of the global batch at ``step``, as (accumulate, rows, ...): a contiguous share of each
    microbatch.
    """
    micro = batch_size // accumulate
    share = micro // processes
    size = len(examples)
    rows = []
    for part in range(accumulate):
        first = part * micro + process * share
        if isinstance(examples, Streams):
            rows += [examples.part(step, lane, batch_size) for lane in range(first, first + share)]
            continue
        for position in range(step * batch_size + first, step * batch_size + first + share):
            epoch, index = example_at(position, size, seed)
            rows.append(examples.get(index, augmentation(seed, epoch, index)))
    return {name: stacked.reshape(accumulate, share, *stacked.shape[1:]) for name, stacked in _stack(rows).items()}


def train_batches(
    examples: Examples, steps: range, batch_size: int, *, seed: int, accumulate: int = 1, workers: int = 0
) -> Generator[tuple[int, Batch], None, None]:
    """Yields (step, batch) for ``steps``; ``workers`` threads compute up to two batches each ahead of their use.

    Raises:
      ValueError: no examples, or a stream with fewer parts than a batch has rows.
      Exception: any exception raised by the examples, at the step that needs them.
    """
    if not len(examples):
        raise ValueError("the split to train on is empty")
    if isinstance(examples, Streams) and len(examples) < batch_size:
        raise ValueError(
            f"a stream of {len(examples)} parts can't be cut into batch_size={batch_size} lanes: take a batch_size of "
            f"at most {len(examples)}, a shorter sequence_length, or more text"
        )
    process, processes = jax.process_index(), jax.process_count()
    return ahead(
        lambda step: train_batch(examples, step, batch_size, seed, accumulate, process, processes), steps, workers
    )


def evaluation_batches(examples: Examples, batch_size: int, *, workers: int = 0) -> Iterator[Batch]:
    """Yields this process's rows of batches over all examples in order, with "weight" (rows,), 1 for examples and 0 for
    rows that only fill the last batch. A stream is cut into one lane per row of a batch.
    """
    process, processes = jax.process_index(), jax.process_count()
    share = batch_size // processes
    size = len(examples)

    if isinstance(examples, Streams):
        parts, streams = examples.parts(batch_size), examples
        lanes = range(process * share, (process + 1) * share)

        def parts_at(number: int) -> Batch:
            weight = np.asarray([lane * parts + number < size for lane in lanes], np.float32)
            return _stack([streams.part(number, lane, batch_size) for lane in lanes]) | {"weight": weight}

        return (batch for _, batch in ahead(parts_at, range(parts), workers))

    def batch_at(number: int) -> Batch:
        start = number * batch_size + process * share
        indices = np.arange(start, start + share)
        rows = _stack([examples.get(int(i), None) for i in np.minimum(indices, size - 1)])
        return rows | {"weight": (indices < size).astype(np.float32)}

    return (batch for _, batch in ahead(batch_at, range(-(-size // batch_size)), workers))


def ahead(compute: Callable[[int], Batch], numbers: range, workers: int) -> Generator[tuple[int, Batch], None, None]:
    """Yields (number, compute(number)) in order; with ``workers`` > 0, that many threads compute the next ones
    meanwhile.
    """
    if workers <= 0:
        yield from ((number, compute(number)) for number in numbers)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="input")
    pending: collections.deque[tuple[int, Future[Batch]]] = collections.deque()
    coming = iter(numbers)
    try:
        for number in coming:
            pending.append((number, pool.submit(compute, number)))
            if len(pending) > 2 * workers:
                break
        while pending:
            number, future = pending.popleft()
            batch = future.result()
            upcoming = next(coming, None)
            if upcoming is not None:
                pending.append((upcoming, pool.submit(compute, upcoming)))
            yield number, batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _stack(rows: list[dict[str, np.ndarray]]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
