"""Reports of answers and statistics whose numbers are known."""

import json
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError, HostError
from mayfly.functions.lines import AnswerLine, Summary
from mayfly.schema import msgspec
from mayfly.workload.outcome import load_all
from mayfly.workload.plot import plot
from mayfly.workload.report import percentile, report, spread, table, throughput


def answers(path: Path, count: int = 1000, summary: Summary | None = None) -> Path:
    """One request every 10 ms; number n is answered after n milliseconds, the first ten by restored
    guests; there is no room for the last of each hundred.
    """
    lines = []
    for number in range(1, count + 1):
        due = 10.0 * number
        full = number % 100 == 0
        lines.append(
            AnswerLine(
                line=number,
                function="odd" if number % 2 else "even",
                status="busy" if full else "ok",
                start="" if full else "restored" if number <= 10 else "warm",
                due_ms=due,
                sent_ms=due + 0.5,
                answered_ms=due + number,
            )
        )
    text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    if summary:
        text += msgspec.json.encode({"summary": summary}) + b"\n"
    path.write_bytes(text)
    return path


def statistics(folder: Path) -> Path:
    """Two workers, as SnapFaaS writes them: four requests of 10, 20, 30 and 40 ms, one dropped."""
    folder.mkdir()
    ms = 1_000_000
    one = {
        "number of vms created": 2,
        "vm memory sizes": {"3": 256, "5": 256},
        "number of requests completed": 3,
        "number of requests dropped": 1,
        "number of evictions": 1,
        "boot timestamps": {"3": [0, 100 * ms], "5": [200 * ms, 250 * ms]},
        "request/response timestamps": {"3": [100 * ms, 110 * ms, 120 * ms, 140 * ms], "5": [300 * ms, 330 * ms]},
        "eviction timestamps": {"3": [190 * ms, 200 * ms]},
    }
    other = {
        **one,
        "number of vms created": 0,
        "number of requests completed": 1,
        "number of requests dropped": 0,
        "number of evictions": 0,
    }
    other |= {"boot timestamps": {}, "eviction timestamps": {}, "request/response timestamps": {"5": [960 * ms, 1000 * ms]}}
    for number, worker in enumerate((one, other)):
        (folder / f"thread-{number}.stat").write_text(json.dumps(worker))
    return folder


def one(path: Path, **options: Any) -> dict[str, Any]:
    (found,) = report(load_all([path]), **options)["experiments"]
    return dict(found)


def test_percentiles_are_of_the_nearest_rank() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert [percentile(hundred, rank) for rank in (50, 90, 99, 99.9, 100)] == [50, 90, 99, 100, 100]
    assert [percentile([1.0], rank) for rank in (0, 50, 99.9)] == [1, 1, 1]
    assert spread([]) is None
    assert spread([0.003, 0.001]) == {"count": 2, "mean": 2, "p50": 1, "p90": 3, "p99": 3, "p99.9": 3, "max": 3}


def test_a_window_slides_over_the_answers() -> None:
    steady = [(number + 0.5) / 10 for number in range(100)]  # ten a second
    assert throughput(steady, 10, 2) == [(1 + index / 2, 10) for index in range(17)]
    burst = throughput([5.0] * 8, 10, 4)
    assert max(rate for _, rate in burst) == 2
    assert burst[0] == (2, 0)
    assert throughput([], 10, 2) == []
    assert throughput([0.0], 0, 2) == []
    assert throughput([0.5], 1, 2) == [(0.5, 1)]  # shorter than the window
    assert len(throughput(steady, 1e7, 2)) <= 1001


def test_a_report_of_answers(tmp_path: Path) -> None:
    found = one(answers(tmp_path / "a.jsonl", summary=Summary(memory=1 << 30, guests_created=7, guests_evicted=3)))
    assert (found["requests"], found["statuses"], found["success_rate"]) == (1000, {"busy": 10, "ok": 990}, 0.99)
    assert (found["memory_bytes"], found["guests_created"], found["guests_evicted"]) == (1 << 30, 7, 3)
    # 1 to 1000 without every hundredth: the 495th is 499, the 891st 899, the 981st 990.
    wanted = {"count": 990, "mean": 500.0, "p50": 499, "p90": 899, "p99": 990, "p99.9": 999, "max": 999}
    assert found["latency_ms"] == wanted
    assert found["latency_ms_by_start"]["restored"] == {"count": 10, "mean": 5.5, "p50": 5, "p90": 9, "p99": 10, "p99.9": 10, "max": 10}
    assert found["latency_ms_by_start"]["warm"]["count"] == 980
    assert {name: values["count"] for name, values in found["latency_ms_by_function"].items()} == {"even": 490, "odd": 500}
    assert found["requests_by_function"] == {"even": 500, "odd": 500}
    assert found["late_ms"]["max"] == 0.5
    assert found["duration_s"] == 10.989
    assert found["offered_per_s"][4][1] == 100
    text = table({"experiments": [found]})
    assert "99.00 % succeeded" in text
    assert "7 guests created, 3 evicted" in text


def test_a_report_of_snapfaas_s_statistics(tmp_path: Path) -> None:
    found = one(statistics(tmp_path / "5-gb"))
    assert (found["requests"], found["statuses"], found["success_rate"]) == (5, {"dropped": 1, "ok": 4}, 0.8)
    assert (found["memory_bytes"], found["guests_created"], found["guests_evicted"]) == (5 << 30, 2, 1)
    assert found["latency_ms"] == {"count": 4, "mean": 25, "p50": 20, "p90": 40, "p99": 40, "p99.9": 40, "max": 40}
    assert found["duration_s"] == 1.0
    assert found["latency_ms_by_function"] == {}


def test_a_folder_may_hold_both(tmp_path: Path) -> None:
    folder = statistics(tmp_path / "512mb")
    answers(folder / "answers.jsonl", 100)
    found = one(folder)
    assert (found["requests"], found["guests_created"], found["memory_bytes"]) == (100, 2, 512 << 20)


def test_what_a_killed_replay_left_is_read(tmp_path: Path) -> None:
    path = answers(tmp_path / "a.jsonl", 10)
    path.write_bytes(path.read_bytes()[:-20])
    found = one(path)
    assert (found["requests"], found["lines_skipped"]) == (9, 1)
    assert "1 lines could not be read" in table({"experiments": [found]})


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b'{"summary": {}}\n', b"\xff\xfe\n"])
def test_what_holds_no_answers_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no answers"):
        load_all([path])


def test_statistics_with_other_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "thread-1.stat"
    path.write_text('{"number of vms created": -1}')
    with pytest.raises(ConfigError, match=r"thread-1\.stat"):
        load_all([path])
    with pytest.raises(ConfigError, match="No such file"):
        load_all([tmp_path / "none"])


def test_experiments_come_by_their_memory_and_keep_apart(tmp_path: Path) -> None:
    paths = []
    for name, memory in (("large", 8 << 30), ("small", 1 << 30)):
        (tmp_path / name).mkdir()
        paths.append(answers(tmp_path / name / "answers.jsonl", 50, Summary(memory=memory)))
    found = report(load_all(paths))["experiments"]
    assert [each["name"] for each in found] == [str(paths[1]), str(paths[0])]


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_plots_of_one_and_of_several(tmp_path: Path, memory: int) -> None:
    paths = [
        answers(tmp_path / f"{number}.jsonl", 50 * number, Summary(memory=number * memory, guests_created=number, guests_evicted=0))
        for number in (1, 2, 3)
    ]
    for name, given in (("one.png", paths[:1]), ("several.png", paths), ("stat.png", [statistics(tmp_path / "x")])):
        plot(load_all(given), tmp_path / name, 1.0)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_plot_where_nothing_was_answered(tmp_path: Path) -> None:
    line = AnswerLine(line=1, function="f", status="busy", due_ms=0, sent_ms=0, answered_ms=0)
    (tmp_path / "a.jsonl").write_bytes(msgspec.json.encode(line))
    plot(load_all([tmp_path / "a.jsonl"]), tmp_path / "a.png", 1.0)
    assert (tmp_path / "a.png").exists()


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(HostError) as missing:
        plot(load_all([answers(tmp_path / "a.jsonl", 10)]), tmp_path / "a.png", 1.0)
    assert "mayfly-vm[workload]" in missing.value.hint
