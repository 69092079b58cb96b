"""What the suite costs: CPU seconds of every test, its processes included, gathered from all workers.

``python -m pytest --costs`` prints them, and fails if a quick test takes more than :data:`MOST`.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from typing import Any

import pytest

MOST, LISTED = 15.0, 5.0  # CPU seconds of one quick test, compilation included
# What a member of a registry may cost on average, in the quick tier and in the full one.
MEMBERS = {"mixer": (4, 12), "family": (8, 24)}
SLOWEST = 20
elsewhere = 0.0  # CPU seconds of a process that worked for this one and still runs


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that work for it."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + elsewhere


def groups(item: pytest.Item) -> list[str]:
    """What a test's costs count for: its folder, and the member of a registry that it is about."""
    found = [item.path.parent.name]
    for name, value in (getattr(item, "callspec", None) and item.callspec.params.items()) or ():
        if member := getattr(value, "member", None):
            found.append(member)
        elif name in MEMBERS and isinstance(value, str):
            found.append(f"{name} {value}")
    return found


class Costs:
    """A plugin of pytest: each worker notes what its tests cost, the process that reports adds it up."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.started = 0.0
        self.tests: dict[str, tuple[float, list[str], bool]] = {}
        self.processes = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[Any]:
        self.started = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
        report = yield
        if call.when == "teardown":
            quick = item.get_closest_marker("full") is None
            report.user_properties.append(("costs", (cpu_seconds() - self.started, groups(item), quick)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "costs":
                self.tests[report.nodeid] = (value[0], list(value[1]), value[2])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (output := getattr(self.config, "workeroutput", None)) is not None:
            output["cpu_seconds"] = cpu_seconds()
            return
        self.processes += cpu_seconds() if not self.config.getoption("numprocesses", None) else 0
        if self.config.getoption("--costs") and self.too_slow() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.processes += getattr(node, "workeroutput", {}).get("cpu_seconds", 0)

    def too_slow(self) -> list[tuple[str, float]]:
        """Quick tests above the limit."""
        return [(name, seconds) for name, (seconds, _, quick) in self.tests.items() if quick and seconds > MOST]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.config.getoption("--costs") or not self.tests:
            return
        write = terminalreporter.write_line
        total = sum(seconds for seconds, _, _ in self.tests.values())
        by_group: collections.Counter[str] = collections.Counter()
        count: collections.Counter[str] = collections.Counter()
        for seconds, names, _ in self.tests.values():
            by_group.update(dict.fromkeys(names, seconds))
            count.update(names)
        terminalreporter.section("CPU seconds")
        write(f"{total:8.1f}  {len(self.tests)} tests; {self.processes - total:.1f} beside them, for imports and collection")
        for kind in ("", *MEMBERS):
            members = [name for name in by_group if (name.partition(" ")[0] == kind if kind else " " not in name)]
            if kind and members:
                mean, limits = sum(by_group[name] for name in members) / len(members), "quick, {} full".format(*MEMBERS[kind])
                limits = f"{MEMBERS[kind][0]} in the quick tier, {MEMBERS[kind][1]} in the full one"
                write(f"{mean:8.1f}  a {kind} on average, of {len(members)}; at most {limits}")
            for name in sorted(members, key=by_group.__getitem__, reverse=True):
                write(f"{by_group[name]:8.1f}  {name} ({count[name]})")
        listed = sorted(self.tests.items(), key=lambda entry: -entry[1][0])
        write(f"the {SLOWEST} slowest, and every quick one above {LISTED:g}:")
        for place, (name, (seconds, _, quick)) in enumerate(listed):
            if place < SLOWEST or (quick and seconds > LISTED):
                write(f"{seconds:8.1f}  {name}{'' if quick else ' (full)'}")
        for name, seconds in self.too_slow():
            write(f"FAILED {name}: {seconds:.1f} CPU seconds, a quick test has {MOST:g}: make it smaller, share its programs, or mark it full", red=True)
