"""Workloads that are made from a specification."""

import collections
import hashlib
import itertools
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError
from mayfly.functions.lines import parse_line
from mayfly.workload.generate import FunctionLoad, WorkloadSpec, as_line, generate, load_spec

EXAMPLES = Path(__file__).parents[3] / "examples/workloads"


def spec(**changes: Any) -> WorkloadSpec:
    functions = (FunctionLoad(name="often", mu=10), FunctionLoad(name="seldom", mu=100, payload=[1]))
    return WorkloadSpec(**{"start_time": 50, "end_time": 1050, "num_users": 7, "functions": functions, **changes})


def test_it_is_the_same_for_a_seed_in_every_version_of_python() -> None:
    text = b"".join(as_line(request) + b"\n" for request in generate(spec(), 3))
    assert hashlib.sha256(text).hexdigest() == "32cffb5cadf12c72ccd36db2cb53efae164e1eacb12ec20ba6e3f15f8949ddfe"
    assert text != b"".join(as_line(request) + b"\n" for request in generate(spec(), 4))


@pytest.mark.parametrize("capped", [True, False])
def test_requests_come_in_order_and_within_the_time(capped: bool) -> None:
    found = list(generate(spec(capped=capped), 1))
    times = [request.time for request in found]
    assert times == sorted(times)
    assert times[0] > 50
    assert times[-1] <= 1050
    assert {request.user_id for request in found} == set(range(7))
    each = collections.Counter((request.user_id, request.function.name) for request in found)
    assert max(each.values()) > 100 or capped
    assert all(count <= (100 if name == "often" else 10) for (_, name), count in each.items()) or not capped


def test_gaps_are_exponential_with_the_mean_that_was_asked_for() -> None:
    users = 200
    found = generate(spec(start_time=0, end_time=20_000, num_users=users, functions=(FunctionLoad(name="f", mu=100),), capped=False), 5)
    of_user: dict[int, list[int]] = collections.defaultdict(list)
    for request in found:
        of_user[request.user_id].append(request.time)
    gaps = [later - earlier for times in of_user.values() for earlier, later in itertools.pairwise(times)]
    assert len(of_user) == users
    assert sum(gaps) / len(gaps) == pytest.approx(100.5, rel=0.03)  # rounded up to whole milliseconds
    assert sum(gap > 100 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)  # 1 / e


def test_a_function_that_is_too_rare_for_the_time_is_not_asked_for_where_it_is_capped() -> None:
    rare = spec(functions=(FunctionLoad(name="rare", mu=1500),))
    assert list(generate(rare, 1)) == []


def test_it_keeps_only_the_next_request_of_each() -> None:
    endless = spec(end_time=10_000_000_000, capped=False, functions=(FunctionLoad(name="f", mu=1),))
    assert len(list(itertools.islice(generate(endless, 1), 1000))) == 1000


def test_a_line_is_what_is_read_again() -> None:
    request = next(request for request in generate(spec(), 1) if request.function.name == "seldom")
    line = parse_line(as_line(request))
    assert (line.time, line.user_id, line.function, bytes(line.payload)) == (request.time, request.user_id, "seldom", b"[1]")


@pytest.mark.parametrize(
    ("name", "users", "least", "most"), [("oneapp", 30, 500, 600), ("multiapp", 80, 4300, 4800), ("medium", 150, 8300, 8700)]
)
def test_snapfaas_s_three_workloads(name: str, users: int, least: int, most: int) -> None:
    """Its own generator gave 8,505 requests for the third."""
    found = load_spec(EXAMPLES / f"{name}.yaml")
    assert (found.num_users, found.end_time) == (users, 60_000)
    assert least < sum(1 for _ in generate(found, 0)) < most


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be an object"),
        ("[", "is not YAML"),
        ("\x00", "is not YAML"),
        ("end_time: 1\nnum_user: 1", "unknown field 'num_user'"),
        ("end_time: 9\nnum_users: 1\nfunctions: []", "functions"),
        ("end_time: 9\nnum_users: 0\nfunctions: [{name: f, mu: 1}]", "num_users is 0"),
        ("end_time: 9\nnum_users: 1\nfunctions: [{name: f, mu: 0}]", "mu is 0"),
        ("end_time: 9\nnum_users: 1\nfunctions: [{name: f, mu: .nan}]", "mu is nan"),
        ("end_time: 9\nnum_users: 1\nfunctions: [{mu: 1}]", "'functions[0].name' is missing"),
        ("start_time: 9\nend_time: 9\nnum_users: 1\nfunctions: [{name: f, mu: 1}]", "end_time 9 is not after start_time 9"),
    ],
)
def test_a_bad_specification_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_spec(path)
    assert message in refused.value.message
    assert str(path) in refused.value.message


def test_a_missing_specification_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_spec(tmp_path / "none.yaml")
