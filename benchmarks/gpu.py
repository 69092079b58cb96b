"""The Hopper kernels on a Hopper GPU, in two stages of a few minutes each: correctness first, then speed compared with
their peers.

``python -m benchmarks.gpu correct`` compares every kernel with float64: the problems that are timed, then all shared
cases, the kernels most likely to be wrong first. ``python -m benchmarks.gpu time`` measures what the device reaches
and, for each problem, milliseconds forward and of outputs with all gradients, compared with cuDNN, PyTorch,
flash-linear-attention, mamba-ssm and NATTEN where they can be imported, and XLA's form of the same op; a problem whose
kernel was found wrong is not timed. Both write benchmarks/results/<h100 or h200>/*.json after each row, and need a
machine with one H100 or H200; ``--dry --output=FOLDER`` runs them with tiny inputs on a CPU, XLA standing in for the
kernels.

Rows run in processes of their own: a kernel that hangs or breaks the device's context costs its row, not the run.
Several processes compile at once; one process does the timing after all others have ended. Peers with long autotuning
(``gpu_peers.SLOW``) have the first half of the time for it; rows whose peer is not compiled by then are measured
without that peer.

Times are of calls queued one after another until the device is done, on random inputs that together exceed the L2; the
contestants take turns, in one order and then the other, and the median counts. A call shorter than
``ceilings.call_ms``, the time of an empty call, cannot be distinguished from it. ``share_of_floor`` is the time
that the products, exponentials or bytes of the op need at the measured ceilings, over the time taken; a peer that is
missing is named with the reason.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("correct", "time", "work"), help="work is for the stages' own processes")
    parser.add_argument("--minutes", type=float, default=4.0, help="after which no new row is started")
    parser.add_argument("--only", default="", help="rows whose op/name contains one of these, separated by commas")
    parser.add_argument(
        "--workers", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)), help="processes that compile at once"
    )
    parser.add_argument(
        "--dry", action="store_true", help="tiny inputs on any device, XLA's form in place of the kernels"
    )
    parser.add_argument("--output", type=pathlib.Path, help="folder; benchmarks/results/<device> by default")
    given = parser.parse_args(arguments)
    from benchmarks import gpu_stages

    if given.stage == "work":
        gpu_stages.work(given.dry)
        return
    import jax

    kind = jax.devices()[0].device_kind.lower()
    device = next((name for name in ("h200", "h100") if name in kind), None)
    if device is None and not given.dry:
        raise SystemExit(
            f"benchmarks.gpu: needs an H100 or H200, this is {kind!r}; --dry --output=FOLDER tries the script"
        )
    if given.dry and given.output is None:
        raise SystemExit("benchmarks.gpu: a dry run's figures mean nothing: name a folder for them with --output")
    report = gpu_stages.Report(given.output or pathlib.Path(__file__).parent / "results" / str(device), given.dry)
    stage = gpu_stages.correct if given.stage == "correct" else gpu_stages.measure
    stage(report, given.only, given.workers, given.dry, time.monotonic() + 60 * given.minutes)


if __name__ == "__main__":
    main()
