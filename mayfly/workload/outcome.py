"""What became of a workload, read from what a replay or a gateway wrote, and from statistics as
SnapFaaS's workers write them.
"""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from mayfly.errors import ConfigError, SchemaError
from mayfly.functions.lines import AnswerLine, Summary
from mayfly.schema import Meta, decode, msgspec

ANSWERED = ("ok", "exception")
"""Statuses of requests that a function answered."""
DROPPED = "dropped"
"""Status of requests of which only statistics tell."""
NS = 1_000_000_000
MEMORY = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)[-_ ]?([gm])i?b(?![a-z0-9])", re.IGNORECASE)
"""A budget in a name, as SnapFaaS's scripts call their folders: `40-gb`."""
STATISTICS = ".stat"
"""What the names of files of statistics end with; all others hold answers."""
SUMMARY = b'{"summary"'
_Count = Annotated[int, Meta(ge=0)]
_Pairs = Mapping[str, tuple[int, ...]]


class Outcome:
    """One experiment. Times are seconds from its beginning.

    Attributes:
        memory: bytes that guests might have together; 0 if unknown.
        statuses: how many requests ended so.
        latencies: of those that were answered, seconds from when they were due, by function and by
            how their guest started.
        asked: how many requests there were of each function.
        due: when each request was to be sent.
        done: when each answer was there.
        late: for how long after its time each request was sent.
        created: guests that were made; None if unknown, as the next.
        evicted: guests that were ended to make room.
        skipped: lines that could not be read.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.memory = _memory_in(name)
        self.statuses: Counter[str] = Counter()
        self.latencies: defaultdict[tuple[str, str], array[float]] = defaultdict(lambda: array("d"))
        self.asked: Counter[str] = Counter()
        self.due = array("d")
        self.done = array("d")
        self.late = array("d")
        self.created: int | None = None
        self.evicted: int | None = None
        self.skipped = 0

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.statuses.total()

    @property
    def success_rate(self) -> float:
        """The share of requests that ended with `ok`."""
        return self.statuses["ok"] / self.requests if self.requests else 0.0

    @property
    def span_s(self) -> float:
        """From the beginning to the last answer."""
        return max(max(self.due, default=0.0), max(self.done, default=0.0))

    def add(self, answer: AnswerLine) -> None:
        """Count a request."""
        self.statuses[answer.status] += 1
        self.asked[answer.function] += 1
        self.due.append(answer.due_ms / 1000)
        if answer.sent_ms is not None:
            self.late.append((answer.sent_ms - answer.due_ms) / 1000)
        if answer.status in ANSWERED and answer.answered_ms is not None:
            self.done.append(answer.answered_ms / 1000)
            self.latencies[answer.function, answer.start].append((answer.answered_ms - answer.due_ms) / 1000)

    def add_summary(self, summary: Summary) -> None:
        """Take what the answers do not say."""
        self.memory = summary.memory or self.memory
        self.created = _sum(self.created, summary.guests_created)
        self.evicted = _sum(self.evicted, summary.guests_evicted)


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker of SnapFaaS writes at its end. Timestamps are nanoseconds, in pairs: begin and
    end.
    """

    created: _Count = msgspec.field(name="number of vms created")
    completed: _Count = msgspec.field(name="number of requests completed")
    dropped: _Count = msgspec.field(name="number of requests dropped")
    evictions: _Count = msgspec.field(name="number of evictions")
    memory_sizes: Mapping[str, int] = msgspec.field(name="vm memory sizes", default_factory=dict)
    boots: _Pairs = msgspec.field(name="boot timestamps", default_factory=dict)
    requests: _Pairs = msgspec.field(name="request/response timestamps", default_factory=dict)
    evicted: _Pairs = msgspec.field(name="eviction timestamps", default_factory=dict)


def load_all(paths: Iterable[Path]) -> list[Outcome]:
    """The experiments in files of answers, files of statistics, and folders with either: one for
    each path, by the memory that they had.

    Raises:
        ConfigError: one cannot be read, or holds neither.
    """
    paths = list(paths)
    short = [path.resolve().name for path in paths]
    found = [load(path, str(path) if short.count(name) > 1 else name) for path, name in zip(paths, short, strict=True)]
    return sorted(found, key=lambda each: each.memory)


def load(path: Path, name: str) -> Outcome:
    """The experiment in a file or a folder.

    Raises:
        ConfigError: as `load_all`.
    """
    outcome = Outcome(name)
    statistics: list[Statistics] = []
    try:
        for file in sorted(each for each in path.iterdir() if each.suffix in (".jsonl", STATISTICS)) if path.is_dir() else [path]:
            if file.suffix == STATISTICS:
                statistics.append(_statistics(file))
            else:
                _read_answers(file, outcome)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", hint="give what `mayfly workload replay` wrote") from error
    if statistics:
        _add_statistics(outcome, statistics)
    if not outcome.requests:
        raise ConfigError(f"{path} holds no answers and no statistics", hint="give what `mayfly workload replay` wrote, or *.stat files")
    return outcome


def _read_answers(file: Path, outcome: Outcome) -> None:
    with file.open("rb") as lines:
        for line in lines:
            try:
                if line.startswith(SUMMARY):
                    outcome.add_summary(decode(dict[str, Summary], line)["summary"])
                elif line.strip():
                    outcome.add(decode(AnswerLine, line))
            except SchemaError:  # a replay that was killed leaves half a line
                outcome.skipped += 1


def _statistics(file: Path) -> Statistics:
    try:
        return decode(Statistics, file.read_bytes())
    except SchemaError as error:
        raise ConfigError(f"{file}: {error.message}", hint="statistics are one object of JSON with SnapFaaS's keys") from error


def _add_statistics(outcome: Outcome, workers: list[Statistics]) -> None:
    """Take the workers' statistics; of the requests only where no answers tell more."""
    outcome.created = sum(each.created for each in workers)
    outcome.evicted = sum(each.evictions for each in workers)
    if outcome.requests:
        return
    stamps = [stamp for each in workers for pairs in (each.boots, each.requests) for stamp in _flat(pairs)]
    beginning = min(stamps, default=0)
    for each in workers:
        outcome.statuses["ok"] += each.completed
        outcome.statuses[DROPPED] += each.dropped
        for pair in each.requests.values():
            for sent, answered in zip(pair[::2], pair[1::2], strict=False):
                outcome.due.append((sent - beginning) / NS)
                outcome.done.append((answered - beginning) / NS)
                outcome.latencies["", ""].append((answered - sent) / NS)
    outcome.statuses += Counter()  # without those that are 0


def _flat(pairs: _Pairs) -> Iterable[int]:
    return (stamp for pair in pairs.values() for stamp in pair)


def _memory_in(name: str) -> int:
    match = MEMORY.search(name)
    return int(float(match[1]) * (1 << (30 if match[2] in "gG" else 20))) if match else 0


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)
