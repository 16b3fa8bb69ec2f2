"""Markers that know what this host can do, counts of outcomes, and a fixture against leaks.

The counts go to the file that MAYFLY_TEST_COUNTS names, as JSON, for scripts/test.
"""

import collections
import functools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import leaks
from tests.kit.agent_groups import remove_left, remove_left_folders

MARKERS = ("browser", "kvm", "system", "slow")
STARTED = time.monotonic()


@functools.cache
def why_not(marker: str) -> str:
    """Why this host cannot run the marker's tests; empty if it can."""
    if marker == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is missing or may not be opened"
    if marker == "browser":
        from tests.kit.page_server import why_no_browser

        return why_no_browser()
    if marker == "system":
        from mayfly.guests.probe import probe  # slow, and only a run with such tests needs it

        found = probe()
        return "" if found.usable else f"{found.reason}; run them through scripts/with-kvm"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in MARKERS:
            if item.get_closest_marker(marker) and (reason := why_not(marker)):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))


class Counts:
    """Outcomes of the tests so far, of each and by marker."""

    def __init__(self) -> None:
        self.markers: dict[str, collections.Counter[str]] = {marker: collections.Counter() for marker in MARKERS}
        self.tests: dict[str, tuple[str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test's outcome: its call's, unless set-up or tear-down failed or skipped it."""
        known, seconds = self.tests.get(report.nodeid, ("passed", 0.0))
        outcome = known
        if report.outcome != "passed":
            outcome = report.outcome if report.when == "call" or report.skipped else "error"
            if hasattr(report, "wasxfail"):
                outcome = "xfailed"
        self.tests[report.nodeid] = outcome, seconds + report.duration
        if report.when == "teardown":
            for marker in self.markers:
                if marker in report.keywords:
                    self.markers[marker][outcome] += 1

    def as_json(self) -> str:
        """The file's text: seconds of the whole run, outcomes in all, by marker and by test."""
        outcomes = collections.Counter(outcome for outcome, _ in self.tests.values())
        fields = {"seconds": time.monotonic() - STARTED, "outcomes": outcomes, "markers": self.markers, "tests": self.tests}
        return json.dumps(fields, indent=1)


def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in the background ignores SIGINT, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_in_order()
    config.pluginmanager.register(Counts(), "mayfly-counts")


def end_in_order() -> None:
    """Have SIGTERM interrupt the tests as SIGINT does, so that fixtures end what they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_runtest_setup() -> None:
    end_in_order()  # again: an event loop that took the signal in a test before gives it back as it is by default


def pytest_sessionfinish() -> None:
    remove_left()
    remove_left_folders()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.pluginmanager.get_plugin("mayfly-counts")
    assert isinstance(counts, Counts)
    for marker, outcomes in counts.markers.items():
        if outcomes:
            terminalreporter.write_line(f"{marker}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    if path := os.environ.get("MAYFLY_TEST_COUNTS"):
        Path(path).write_text(counts.as_json())


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if it leaves a descriptor, a child process or a Unix socket behind."""
    with leaks.none_left():
        yield
