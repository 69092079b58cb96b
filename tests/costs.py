"""What the suite costs: CPU seconds of every test, its processes included, gathered from all workers.

``python -m pytest --costs`` prints them, and fails if a quick test takes more than :data:`MOST`.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Generator
from typing import Any, NamedTuple

import pytest

MOST, LISTED = 15.0, 5.0  # CPU seconds of one quick test, compilation included
SLOWEST = 20
# What a member of a registry may cost on average, in the quick tier and in both.
MEMBERS = {"mixer": (4, 12), "family": (8, 24)}

elsewhere = 0.0  # CPU seconds of a process that works for this one and still runs


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that work for it."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + elsewhere


class Cost(NamedTuple):
    """Of one test: CPU seconds, what they count for, and whether it is of the quick tier."""

    seconds: float
    groups: list[str]
    quick: bool


def groups(item: pytest.Item) -> list[str]:
    """The folder of a test, and the member of a registry that it is about."""
    found = [item.path.parent.name]
    if callspec := getattr(item, "callspec", None):
        for name, value in callspec.params.items():
            if member := getattr(value, "member", None):
                found.append(member)
            elif name in MEMBERS and isinstance(value, str):
                found.append(f"{name} {value}")
    return found


class Costs:
    """A plugin of pytest: each worker notes what its tests cost, the process that reports adds it up."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.started = self.processes = 0.0
        self.tests: dict[str, Cost] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self.started = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        report = yield
        if call.when == "teardown":
            cost = Cost(cpu_seconds() - self.started, groups(item), item.get_closest_marker("full") is None)
            report.user_properties.append(("cost", tuple(cost)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "cost":
                self.tests[report.nodeid.partition("@")[0]] = Cost(*value)  # behind the @ stands the group of xdist

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        worker = getattr(self.config, "workeroutput", None)
        if worker is not None:
            worker["cpu_seconds"] = cpu_seconds()
        elif self.config.getoption("--costs") and self.too_slow() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.processes += getattr(node, "workeroutput", {}).get("cpu_seconds", 0.0)

    def too_slow(self) -> list[str]:
        """Quick tests above the limit."""
        return [name for name, cost in self.tests.items() if cost.quick and cost.seconds > MOST]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.config.getoption("--costs") or not self.tests:
            return
        write = terminalreporter.write_line
        seconds: collections.Counter[str] = collections.Counter()
        count: collections.Counter[str] = collections.Counter()
        for cost in self.tests.values():
            seconds.update(dict.fromkeys(cost.groups, cost.seconds))
            count.update(set(cost.groups))
        terminalreporter.section("CPU seconds")
        total = sum(cost.seconds for cost in self.tests.values())
        beside = (self.processes or cpu_seconds()) - total
        write(f"{total:8.1f}  {len(self.tests)} tests; beside them {beside:.1f} for imports and collection")
        for kind in ("", *MEMBERS):
            members = sorted(
                (name for name in seconds if name.partition(" ")[0] == kind or not (kind or " " in name)),
                key=seconds.get,
                reverse=True,
            )
            if kind and members:
                mean, (quick, full) = sum(seconds[name] for name in members) / len(members), MEMBERS[kind]
                write(
                    f"{mean:8.1f}  a {kind} on average, of {len(members)}: at most {quick} quick, {full} in both tiers"
                )
            for name in members:
                write(f"{seconds[name]:8.1f}  {name} ({count[name]})")
        functions: collections.Counter[str] = collections.Counter()
        for name, cost in self.tests.items():
            functions[name.partition("[")[0]] += cost.seconds
        write(f"the {SLOWEST} most expensive functions, all cases together:")
        for name, all_cases in functions.most_common(SLOWEST):
            write(f"{all_cases:8.1f}  {name}")
        write(f"the {SLOWEST} slowest tests, and every quick one above {LISTED:g}:")
        for place, (name, cost) in enumerate(sorted(self.tests.items(), key=lambda entry: -entry[1].seconds)):
            if place < SLOWEST or (cost.quick and cost.seconds > LISTED):
                write(f"{cost.seconds:8.1f}  {name}{'' if cost.quick else ' (full)'}")
        for name in self.too_slow():
            over = f"{self.tests[name].seconds:.1f} CPU seconds, and a quick test has {MOST:g}"
            write(f"FAILED {name}: {over}: make it smaller, share its programs, or mark it full", red=True)
