"""Events over HTTP: whoever reads, from wherever and however often the connection is lost, gets the
run's bytes once each.
"""

import asyncio
import base64
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.api import events
from mayfly.errors import UnprocessableError
from mayfly.host.snippet import Mode, Snippet
from mayfly.protocol.frames import Done, Stage, Stderr, Stdout
from mayfly.runs import render
from mayfly.runs.record import START
from mayfly.runs.result import AnyEvent
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from tests.kit.answers import check_event
from tests.kit.played_guest import EXIT
from tests.unit.api.test_server import URL, folder, get, post, serve

__all__ = ["folder", "serve"]
WAIT_S = 30
STREAMS = ("stdout", "stderr")
Pieces = list[tuple[str, bytes]]
Serve = Callable[..., Any]


class Event(NamedTuple):
    id: str
    data: Any


def parse_sse(stream: bytes) -> list[Event]:
    """The messages of an event stream, by WHATWG HTML, 9.2.6 ("Interpreting an event stream")."""
    found = []
    last_id, name, data = "", "", ""
    for line in re.split("\r\n|\n|\r", stream.decode(errors="replace").removeprefix("\ufeff")):
        if not line:
            if data:
                found.append(Event(last_id, json.loads(data.removesuffix("\n"))))
                assert name in ("", "message"), "EventSource.onmessage would not see it"
            name, data = "", ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match field:
                case "event":
                    name = value
                case "data":
                    data += value + "\n"
                case "id" if "\0" not in value:
                    last_id = value
    return found  # what an empty line has not ended is dropped


def parse_jsonl(stream: bytes) -> list[Event]:
    whole, _, _ = stream.rpartition(b"\n")
    objects = [json.loads(line) for line in whole.splitlines()]
    return [Event(value.pop("id"), value) for value in objects]


PARSERS = {events.SSE: parse_sse, events.JSONL: parse_jsonl}


def contents(found: list[Event]) -> list[Any]:
    """The events without their ids, neighbours of a stream joined and as bytes."""
    joined: list[Any] = []
    for _, event in found:
        check_event(event)
        if event["event"] not in STREAMS:
            joined.append(event)
            continue
        assert ("data" in event) != ("base64" in event)
        data = event["data"].encode() if "data" in event else base64.b64decode(event["base64"], validate=True)
        assert data
        if joined and isinstance(joined[-1], tuple) and joined[-1][0] == event["event"]:
            data = joined.pop()[1] + data
        joined.append((event["event"], data))
    return joined


def new_run() -> Run:
    return Run(language="toy", version="1", mode=Mode.RAW, step_names=("build", "run"))


def play(run: Run, pieces: Pieces) -> Iterator[None]:
    """Two steps with the same output, an append at a time."""
    for step, name in enumerate(run.outcome.step_names):
        run.note(Stage(step, name))
        yield
        for stream, data in pieces:
            run.note(Stdout(data) if stream == "stdout" else Stderr(data))
            yield
        run.note(replace(EXIT, step=step))
    run.note(Done())
    run.finish()
    yield


def finished(*pieces: tuple[str, bytes]) -> Run:
    run = new_run()
    for _ in play(run, list(pieces)):
        pass
    return run


def take(renderer: render.Renderer) -> bytes:
    return b"".join(iter(renderer.take, None))


def read(run: Run, kind: str, after: str = "") -> list[Event]:
    return PARSERS[kind](take(events.make_renderer(run, kind, events.find_position(after, run.record))))


texts = st.text(min_size=1, max_size=6).map(str.encode)
output = st.lists(st.tuples(st.sampled_from(STREAMS), st.binary(min_size=1, max_size=8) | texts), max_size=12)
kinds = st.sampled_from([events.SSE, events.JSONL])


@given(output, kinds, st.lists(st.booleans(), min_size=1, max_size=20), st.integers(4, 9))
def test_a_connection_lost_while_the_run_goes_on_loses_and_doubles_nothing(pieces: Pieces, kind: str, lost: list[bool], size: int) -> None:
    """After each append the reader may lose its connection: whole events are what it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "OUTPUT", size)
        run = new_run()
        seen: list[Event] = []
        renderer = events.make_renderer(run, kind, START)
        for count, _ in enumerate(play(run, pieces)):
            seen += PARSERS[kind](take(renderer))
            if lost[count % len(lost)]:
                after = seen[-1].id
                renderer = events.make_renderer(run, kind, events.find_position(after, run.record))
        assert contents(seen) == contents(read(run, kind))


@given(output, kinds)
def test_resuming_at_every_id_gives_the_rest(pieces: Pieces, kind: str) -> None:
    run = finished(*pieces)
    whole = read(run, kind)
    for stream in STREAMS:
        given_twice = 2 * b"".join(data for name, data in pieces if name == stream)
        assert b"".join(part[1] for part in contents(whole) if isinstance(part, tuple) and part[0] == stream) == given_twice
    assert len({event.id for event in whole}) == len(whole)
    for count, event in enumerate(whole, 1):
        assert contents(whole[:count] + read(run, kind, event.id)) == contents(whole)


@given(output, kinds, st.data())
def test_cut_anywhere_in_the_bytes_of_the_stream(pieces: Pieces, kind: str, data: st.DataObject) -> None:
    run = finished(*pieces)
    whole = take(events.make_renderer(run, kind, START))
    seen: list[Event] = []
    for _ in range(3):
        after = seen[-1].id if seen else ""
        stream = take(events.make_renderer(run, kind, events.find_position(after, run.record)))
        seen += PARSERS[kind](stream[: data.draw(st.integers(0, len(stream)))])
    after = seen[-1].id if seen else ""
    assert contents(seen + read(run, kind, after)) == contents(PARSERS[kind](whole))


@given(st.text(min_size=1, max_size=12))
def test_a_character_cut_by_pieces_or_connections_stays_text(text: str) -> None:
    run = new_run()
    run.note(Stage(0, "build"))
    seen: list[Event] = []
    after = ""
    for byte in text.encode():
        run.note(Stdout(bytes([byte])))
        seen += read(run, events.SSE, after)
        after = seen[-1].id
    assert "".join(event.data["data"] for event in seen[1:]) == text


def test_ids_mean_the_same_to_all_readers_and_to_a_span_that_grows() -> None:
    run = new_run()
    run.note(Stage(0, "build"))
    run.note(Stdout(b"ab"))
    live = read(run, events.SSE)
    run.note(Stdout(b"cd"))
    run.note(Stderr(b"x"))
    assert contents(read(run, events.SSE, live[-1].id)) == [("stdout", b"cd"), ("stderr", b"x")]
    late = read(run, events.SSE)
    assert [event.data.get("data") for event in late] == [None, "abcd", "x"]
    assert [event.id for event in late] == ["0-0", "1-4", "2-1"]
    assert live[-1].id == "1-2"


BAD_IDS = ["x", "0", "-", "0-", "-1-0", "0-1", "1-0", "1-6", "2-5", "99-0", "1-2-3", " 0-0", "٣-1", f"{'9' * 5000}-0", "9" * 15 + "-0"]


@pytest.mark.parametrize("name", BAD_IDS)
def test_an_id_that_the_run_never_had_is_refused(name: str) -> None:
    run = finished(("stdout", b"12345"), ("stderr", b"1234"))
    with pytest.raises(UnprocessableError, match="the run had no event"):
        events.find_position(name, run.record)


def test_a_stream_is_not_searched_from_the_records_beginning() -> None:
    """A guest that alternates between its streams makes as many spans as it writes bytes."""
    run = new_run()
    run.note(Stage(0, "build"))
    for _ in range(20_000):
        run.note(Stdout(b"x"))
        run.note(Stderr(b"y"))
    run.note(EXIT)
    run.note(Stage(1, "run"))
    run.note(Stderr(b"z"))
    looked = 0

    class Counting(list[int]):
        def __getitem__(self, index: Any) -> Any:
            nonlocal looked
            looked += 1
            return super().__getitem__(index)

    run.record._spans = Counting(run.record._spans)  # type: ignore[assignment]
    assert contents(read(run, events.SSE, "40002-0")) == [("stderr", b"z")]
    assert contents(read(run, events.SSE, "39999-20000"))[0] == ("stderr", b"y")
    assert 0 < looked < 100


ACCEPTS = [
    ([], events.SSE),
    (["*/*"], events.SSE),
    (["text/html"], events.SSE),
    (["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], events.SSE),
    (["text/event-stream"], events.SSE),
    (["application/jsonl"], events.JSONL),
    (["Application/JSONL; charset=utf-8"], events.JSONL),
    (["application/x-ndjson"], "application/x-ndjson"),
    (["application/*"], events.JSONL),
    (["text/event-stream;q=0.5, application/jsonl"], events.JSONL),
    (["text/event-stream;q=0.5", "application/x-ndjson;q=0.75"], "application/x-ndjson"),
    (["text/event-stream;q=0, */*"], events.JSONL),
    (["application/jsonl;q=0.1, */*"], events.SSE),
    (["application/jsonl;q=many, ,;;"], events.JSONL),
]


@pytest.mark.parametrize(("accept", "kind"), ACCEPTS)
def test_the_type_is_the_one_that_a_client_prefers(accept: list[str], kind: str) -> None:
    assert events.choose_type(accept) == kind


def keep(service: Service, run: Run) -> str:
    """Have a run without a machine, which the test plays itself."""
    service.runs.add(run)
    return f"{URL}/runs/{run.id}/events"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


async def read_events(answer: aiohttp.ClientResponse, last: str) -> list[Event]:
    """Read until an event that contains `last`."""
    stream = b""
    while last.encode() not in stream or not stream.endswith(b"\n\n"):
        piece = await answer.content.readany()
        assert piece, stream
        stream += piece
    return parse_sse(stream)


@pytest.mark.parametrize("form", ["sse", "jsonl"])
def test_a_run_is_started_and_streamed(serve: Serve, form: str) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        async with client.post(f"{URL}/run?language=toy&stream={form}", data=b"printf 'a\\377'; echo b >&2; exit 3") as answer:
            assert answer.status == 200
            assert answer.content_type == events.KINDS[events.Format(form)]
            where = answer.headers["Content-Location"]
            found = PARSERS[answer.content_type](await answer.read())
        names = [event.data["event"] for event in found]
        assert [name for name in names if name not in STREAMS] == ["stage", "exit", "stage", "exit", "done"]
        assert {"event": "stdout", "base64": base64.b64encode(b"a\xff").decode()} in [event.data for event in found]
        result = found[-1].data.pop("result")
        _, later = await get(client, where.removesuffix("/events"))
        fixed = ("id", "status", "exit_status", "state", "steps", "error")
        assert {name: result[name] for name in fixed} == {name: later[name] for name in fixed}
        assert (result["status"], result["exit_status"]) == ("failed", 3)
        async with client.get(f"{URL}{where}?format={form}") as answer:
            assert contents(PARSERS[answer.content_type](await answer.read())) == contents(found)
        await service.settled(service.get(result["id"]))
        assert service.get(result["id"]).readers == set()

    serve(scenario)


def test_a_streaming_client_that_goes_away_ends_its_run(serve: Serve) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        async with client.post(f"{URL}/run?language=toy&stream=sse", data=b"echo here; sleep 60") as answer:
            await read_events(answer, "here")
            (run,) = service.runs
            assert not run.done.is_set()
        await asyncio.wait_for(run.done.wait(), WAIT_S)
        assert run.outcome.error is not None
        assert run.outcome.error.message == "the client went away"
        await service.settled(run)
        await until(lambda: not run.readers)
        assert service.admission.used == 0

    serve(scenario)


def test_half_closing_is_not_going_away(serve: Serve) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(service.config.socket))
        writer.write(b"POST /run?language=toy&stream=sse HTTP/1.0\r\nContent-Length: 18\r\n\r\nsleep 0.2; echo ok")
        writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            whole = await reader.read()
        writer.close()
        return whole

    head, _, body = serve(scenario).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 ")
    found = parse_sse(body)
    assert found[-1].data["result"]["status"] == "ok"
    assert ("stdout", b"ok\n") in contents(found)


def test_what_the_address_may_have(serve: Serve) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        run = finished()
        where = keep(service, run).removeprefix(URL)
        for path in ("/run?language=toy&stream=loud", "/start?language=toy&stream=sse"):
            assert (await post(client, path, b"true"))[0] == 422
        assert (await post(client, "/run?stream=sse&language=cobol", b"true"))[0] == 404
        for query in ("?format=xml", "?colour=red", "?after=5-5"):
            status, answer = await get(client, where + query)
            assert (status, answer["error"]["code"]) == (422, "invalid_value")
        status, answer = await get(client, "/runs/none/events")
        assert (status, answer["error"]["code"]) == (404, "unknown_run")
        _, described = await get(client, "/openapi.json")
        operation = described["paths"]["/runs/{id}/events"]["get"]
        assert [(item["name"], item["in"]) for item in operation["parameters"]] == [
            ("id", "path"),
            ("format", "query"),
            ("after", "query"),
            ("Last-Event-ID", "header"),
        ]
        assert set(operation["responses"]["200"]["content"]) == {events.SSE, events.JSONL}
        assert "stream" in [item["name"] for item in described["paths"]["/run"]["post"]["parameters"]]

    serve(scenario)


def test_last_event_id_over_http(serve: Serve) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        run = finished(("stdout", b"one"), ("stderr", "zwölf".encode()), ("stdout", b"\xff\0"))
        where = keep(service, run)
        async with client.get(where) as answer:
            whole = parse_sse(await answer.read())
        for count, event in enumerate(whole, 1):
            last = count == len(whole)
            for query, headers in (
                ("", {"Last-Event-ID": event.id}),
                ("?after=0-0", {"Last-Event-ID": event.id}),
                (f"?after={event.id}", {}),
            ):
                async with client.get(where + query, headers=headers) as answer:
                    assert answer.status == (204 if last else 200)
                    assert contents(whole[:count] + parse_sse(await answer.read())) == contents(whole)
        for name in ("7-7", "x", "-1-0"):
            async with client.get(where, headers={"Last-Event-ID": name}) as answer:
                assert answer.status == 422
                assert (await answer.json())["error"]["code"] == "invalid_value"

    serve(scenario)


def test_readers_at_different_positions_of_a_run_under_way(serve: Serve) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        run = new_run()
        where = keep(service, run)
        run.note(Stage(0, "build"))
        async with client.get(where) as first:
            await read_events(first, "stage")
            run.note(Stdout(b"early "))
            seen = await read_events(first, "early")
            async with client.get(where) as second, client.get(where, headers={"Last-Event-ID": seen[-1].id}) as third:
                run.note(Stdout(b"late"))
                run.note(EXIT)
                run.note(Stage(1, "run"))
                run.note(replace(EXIT, step=1))
                run.note(Done())
                run.finish()
                found = [contents(parse_sse(await answer.read())) for answer in (first, second, third)]
        stage, *rest = contents(read(run, events.SSE))
        assert found[1] == [stage, *rest]
        assert found[0] == found[2] == [("stdout", b"late"), *rest[1:]]
        await until(lambda: not run.readers)

    serve(scenario)


@pytest.mark.parametrize("wanted", ["/none", "", "?after=9-9"])
def test_head_says_what_get_would_and_waits_for_nothing(serve: Serve, wanted: str) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> tuple[int, str, bytes]:
        where = keep(service, new_run())
        path = where.replace("/events", "x/events") if wanted == "/none" else where + wanted
        async with client.head(path, headers={"Accept": "application/x-ndjson"}) as answer:
            return answer.status, answer.content_type, await answer.read()

    status, kind, body = serve(scenario)
    assert status == {"/none": 404, "": 200}.get(wanted, 422)
    assert kind == ("application/x-ndjson" if status == 200 else "application/json")
    assert body == b""


def test_a_comment_comes_where_no_event_does(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)

    async def scenario(client: aiohttp.ClientSession, service: Service) -> bytes:
        run = new_run()
        async with client.get(keep(service, run)) as answer:
            stream = await answer.content.readexactly(6)
            for _ in play(run, []):
                pass
            return bytes(stream + await answer.read())

    stream = serve(scenario)
    assert stream.startswith(b":\n\n:\n\n")
    assert [event.data["event"] for event in parse_sse(stream)] == ["stage", "exit", "stage", "exit", "done"]


def test_json_lines_have_no_comments(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)

    async def scenario(client: aiohttp.ClientSession, service: Service) -> bytes:
        run = new_run()
        where = keep(service, run)
        async with client.get(where + "?format=jsonl") as lines, client.get(where) as sse:
            await sse.content.readexactly(6)
            for _ in play(run, []):
                pass
            return await lines.read()

    assert serve(scenario).startswith(b'{"event":"stage","id":"0-0"')


def test_a_run_has_so_many_readers_and_no_more(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_READERS", 2)

    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        run, other = new_run(), new_run()
        where = keep(service, run)
        async with client.get(where):
            async with client.get(where):
                async with client.get(where) as third:
                    assert (third.status, third.headers["Retry-After"]) == (429, "1")
                    assert (await third.json())["error"]["code"] == "busy"
                async with client.get(keep(service, other)) as elsewhere:
                    assert elsewhere.status == 200
            await until(lambda: len(run.readers) == 1)
            async with client.get(where) as again:
                assert again.status == 200

    serve(scenario)


def test_a_reader_that_stalls_holds_up_nobody_and_little_memory(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = 0
    dump = render.dump

    def count(value: AnyEvent) -> bytes:
        nonlocal rendered
        rendered += len(dump(value))
        return dump(value)

    monkeypatch.setattr(render, "dump", count)
    size = 4 << 20

    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        run = new_run()
        where = keep(service, run)
        _, stalled = await asyncio.open_unix_connection(str(service.config.socket), limit=1)
        stalled.write(f"GET {where.removeprefix(URL)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(lambda: len(run.readers) == 1)
        run.note(Stage(0, "build"))
        run.note(Stdout(b"x" * size))
        run.fail(UnprocessableError("over"))
        async with client.get(where) as answer:
            whole = parse_sse(await answer.read())
        assert contents(whole)[1] == ("stdout", b"x" * size)
        assert rendered < size + (1 << 20)
        assert len(run.readers) == 1
        monkeypatch.setattr(Run, "dismiss", lambda run: dismiss(run, 0))
        await service.forget(run.id)
        await until(lambda: not run.readers)
        stalled.close()

    dismiss = Run.dismiss
    serve(scenario)


@pytest.mark.parametrize("end", ["delete", "stop"])
def test_readers_of_a_run_that_is_ended_get_its_end(serve: Serve, end: str) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> list[Event]:
        run = service.start(Snippet(language="toy", source=b"echo here; sleep 60"))
        async with client.get(f"{URL}/runs/{run.id}/events") as answer:
            await read_events(answer, "here")
            ending: Awaitable[Any] = service.close() if end == "stop" else service.forget(run.id)
            _, rest = await asyncio.gather(ending, answer.read())
            return parse_sse(rest)

    found = serve(scenario)
    assert [event.data["event"] for event in found] == ["error", "done"]
    assert found[0].data["error"]["code"] == "run_ended"
