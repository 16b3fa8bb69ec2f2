"""Make a workload: requests of many users, each with exponential gaps, in the order of their times.

The specification is the one of SnapFaaS's generator (`macrobenchmark/generator.py` there).
"""

import heapq
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from mayfly.errors import ConfigError, SchemaError
from mayfly.schema import Meta, Record, convert, field, msgspec

PAYLOAD = {"request": 42}
"""What SnapFaaS's generator sends."""
_Ms = Annotated[int, Meta(ge=0, le=10_000_000_000)]


class FunctionLoad(Record, frozen=True, kw_only=True):
    """What each user asks of one function: a request every `mu` milliseconds, on average."""

    name: Annotated[str, Meta(min_length=1)]
    mu: Annotated[float, Meta(ge=1, le=10_000_000_000)]
    payload: Any = field(default_factory=PAYLOAD.copy)


class WorkloadSpec(Record, frozen=True, kw_only=True):
    """A workload. Times are milliseconds.

    Attributes:
        start_time: no request comes earlier.
        end_time: none comes later.
        num_users: each asks for each function, independently of the others.
        functions: what they ask for.
        capped: a user asks for a function at most (end_time - start_time) / mu times, as SnapFaaS's
            generator has it: fewer than the mean of a Poisson process, which `false` gives.
    """

    start_time: _Ms = 0
    end_time: _Ms
    num_users: Annotated[int, Meta(ge=1, le=10_000_000)]
    functions: Annotated[tuple[FunctionLoad, ...], Meta(min_length=1)]
    capped: bool = True

    def __post_init__(self) -> None:
        if self.end_time <= self.start_time:
            raise ValueError(f"end_time {self.end_time} is not after start_time {self.start_time}")


class Request(NamedTuple):
    """A request: milliseconds from the beginning, and which user asks for which function."""

    time: int
    user_id: int
    function: FunctionLoad


def load_spec(path: Path) -> WorkloadSpec:
    """The specification in a file of YAML.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    import yaml

    try:
        return convert(WorkloadSpec, yaml.safe_load(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", hint="give a file of YAML that says what the workload is") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    except SchemaError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint or "docs/workloads.md describes the file") from error


def generate(spec: WorkloadSpec, seed: int) -> Iterator[Request]:
    """The requests, sorted by time; always the same for a seed.

    Only the next request of each user and function is in memory. Gaps are computed from
    `Random.random()`, which alone gives the same numbers in every version of Python.
    """
    chance = random.Random(seed)  # noqa: S311 (not for secrets)
    span = spec.end_time - spec.start_time

    def after(time: int, mu: float) -> int:
        return time + math.ceil(-mu * math.log(1.0 - chance.random()))

    # Time, place in `functions`, user, and how many may still come: a heap that the time leads, and
    # that ties cannot leave to chance.
    coming: list[tuple[int, int, int, float]] = []
    for place, function in enumerate(spec.functions):
        left = float(span // function.mu) if spec.capped else math.inf
        if left < 1:
            continue
        for user in range(spec.num_users):
            first = after(spec.start_time, function.mu)
            if first <= spec.end_time:
                coming.append((first, place, user, left))
    heapq.heapify(coming)
    while coming:
        time, place, user, left = coming[0]
        function = spec.functions[place]
        yield Request(time, user, function)
        following = after(time, function.mu)
        if left > 1 and following <= spec.end_time:
            heapq.heapreplace(coming, (following, place, user, left - 1))
        else:
            heapq.heappop(coming)


def as_line(request: Request) -> bytes:
    """The request as a line of JSON, as `functions/lines.py` reads it."""
    return msgspec.json.encode(
        {"time": request.time, "user_id": request.user_id, "function": request.function.name, "payload": request.function.payload}
    )
