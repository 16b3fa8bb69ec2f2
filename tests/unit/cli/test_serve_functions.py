"""Functions through a server process and all its gateways: created and removed while it runs, 500
requests with checked answers, three functions in room for two, crashes among them, and its end.
Guests are ordinary processes.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mayfly.units import MIB
from tests.kit.api_fakes import ROOT
from tests.kit.functions_kit import install_echo
from tests.kit.functions_traffic import Host, from_file, over_frames, over_http, while_it_stops
from tests.kit.scale import patience

NAMES = ("one", "two", "three")
SPEC = "- {{name: {name}, language: toy, code: {name}.toy, timeout_s: 1, queue: 200, queue_s: 60}}\n"
BUDGET = 256 * MIB
"""Two guests of the toy language."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    install_echo(monkeypatch, tmp_path)
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        program = [sys.executable, "-m", "tests.kit.fake_mayfly", "-"]
        found = Host(tmp_path, Path(name) / "x" / "api.sock", program, ["--time-factor", "1", "--kernel", tmp_path / "vmlinux"])
        yield found
        found.close()


def create(host: Host, *names: str) -> str:
    """Create functions; what the command prints."""
    for name in names:
        (host.folder / f"{name}.toy").write_text("true")
    file = host.folder / "functions.yaml"
    file.write_text("".join(SPEC.format(name=name) for name in names))
    return host.function("create", file)


@pytest.mark.slow
def test_500_requests_through_every_gateway(host: Host) -> None:
    create(host, "one")
    host.serve("--memory-budget", str(BUDGET))
    assert create(host, "two", "three").count("toy") == 2
    assert [function["name"] for function in json.loads(host.run("function", "list", "--json"))] == sorted(NAMES)
    asyncio.run(asyncio.wait_for(over_http(host, NAMES, crashing=NAMES, hanging=NAMES), patience(120)))
    over_frames(host, NAMES)
    from_file(host, NAMES)
    assert json.loads(host.function("invoke", "one", "--data", '{"a": 1}')) == {"a": 1}
    host.sent["ok"] += 1
    asyncio.run(asyncio.wait_for(while_it_stops(host, "one"), patience(60)))
    host.check_records()
    assert host.sent["ok"] >= 500
    assert json.loads(host.statistics.read_text())["number of evictions"] > 0
    host.run("function", "rm", "two")
    assert [function["name"] for function in json.loads(host.run("function", "list", "--json"))] == ["one", "three"]
    assert "no function" not in host.run("function", "inspect", "one")
    host.run("function", "inspect", "two", status=1)


def test_without_a_server_a_guest_is_started_for_it(host: Host) -> None:
    create(host, "one")
    assert json.loads(host.function("invoke", "one", "--data", "[1]")) == [1]
    host.function("logs", "one", status=1)


@pytest.mark.slow
def test_the_medium_workload(host: Host) -> None:
    """The 30 s of SnapFaaS's workload with few users, in a tenth of the time, and its report."""
    workload = yaml.safe_load((ROOT / "examples" / "workloads" / "medium.yaml").read_text())
    create(host, *(function["name"] for function in workload["functions"]))
    (host.folder / "medium.yaml").write_text(json.dumps({**workload, "num_users": 5, "capped": False}))
    requests, answers, found, picture = (host.folder / name for name in ("requests", "256-mib.jsonl", "report.json", "report.png"))
    host.run("workload", "generate", host.folder / "medium.yaml", "--seconds", "30", "-o", requests)
    host.serve("--memory-budget", str(BUDGET))
    host.run("workload", "replay", requests, "--against", host.socket, "--speed", "10", "-o", answers)
    host.close()
    said = host.run("workload", "report", answers, host.statistics, "--json", found, "--plot", picture)
    assert "100.00 % succeeded" in said
    experiments = {experiment["name"]: experiment for experiment in json.loads(found.read_text())["experiments"]}
    experiment, of_server = experiments[answers.name], experiments[host.statistics.name]
    count = len(requests.read_text().splitlines())
    assert experiment["statuses"] == {"ok": count}
    assert (experiment["memory_bytes"], sum(experiment["requests_by_function"].values())) == (BUDGET, count)
    assert (of_server["guests_created"], of_server["guests_evicted"]) == (experiment["guests_created"], experiment["guests_evicted"])
    assert experiment["guests_created"] >= 3
    assert experiment["guests_evicted"] >= 1
    assert picture.read_bytes().startswith(b"\x89PNG")
