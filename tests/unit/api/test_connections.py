"""Connections: half-closed, half a request, half a body, and clients that are gone."""

import asyncio
import io
import socket
from collections.abc import Callable
from typing import Any

import pytest

from mayfly.api import connections
from mayfly.runs.service import Service
from tests.unit.api.test_server import URL, folder, serve

__all__ = ["folder", "serve"]
WAIT_S = 30


async def connect(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(service.config.socket))


def post(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST /run?language=toy HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (size, body)


def test_who_half_closes_gets_the_answer(serve: Callable[..., Any]) -> None:
    async def scenario(client: Any, service: Service) -> bytes:
        reader, writer = await connect(service)
        writer.write(post(b"echo hello"))
        writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            answer = await reader.read()
        writer.close()
        return answer

    answer = serve(scenario)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"stdout":"hello\\n"' in answer
    assert b"Connection: close" in answer


def test_who_half_closes_and_then_goes_away_ends_the_run(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "TICK_S", 0.05)

    async def scenario(client: Any, service: Service) -> str:
        _, writer = await connect(service)
        writer.write(post(b"sleep 60"))
        writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            while not (runs := list(service.runs)):
                await asyncio.sleep(0.01)
            writer.close()
            await runs[0].done.wait()
        return str(runs[0].outcome.error)

    assert serve(scenario) == "the client went away"


def test_an_end_within_a_body_begins_nothing(serve: Callable[..., Any]) -> None:
    async def scenario(client: Any, service: Service) -> tuple[bytes, int]:
        reader, writer = await connect(service)
        writer.write(post(b"echo", 100))
        writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            answer = await reader.read()
        writer.close()
        return answer, len(list(service.runs))

    answer, runs = serve(scenario)
    assert b" 200 " not in answer
    assert runs == 0


def test_half_a_request_is_not_waited_for(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "TICK_S", 0.05)
    monkeypatch.setattr(connections, "IDLE_S", 0.2)

    async def scenario(client: Any, service: Service) -> list[bytes]:
        ends = [await connect(service) for _ in range(20)]
        for _, writer in ends:
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\nX: ")
        async with asyncio.timeout(WAIT_S):
            answers = [await reader.read() for reader, _ in ends]
        for _, writer in ends:
            writer.close()
        async with client.get(URL + "/version") as answer:
            assert answer.status == 200
        return answers

    assert serve(scenario) == [b""] * 20


def test_a_long_run_is_not_idle(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "TICK_S", 0.02)
    monkeypatch.setattr(connections, "IDLE_S", 0.05)

    async def scenario(client: Any, service: Service) -> int:
        async with client.post(URL + "/run?language=toy", data=b"sleep 0.5") as answer:
            status: int = answer.status
            return status

    assert serve(scenario) == 200


def test_bodies_share_a_budget(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_S", 0.5)

    async def scenario(client: Any, service: Service) -> None:
        size = 100 << 20
        slow = []
        for _ in range(connections.ALL_BODIES // size):
            reader, writer = await connect(service)
            writer.write(post(b"x", size))
            slow.append((reader, writer))
        async with asyncio.timeout(WAIT_S):
            while True:
                async with client.post(URL + "/run?language=toy", data=io.BytesIO(bytes(size))) as answer:
                    if answer.status == 429:
                        break
                    assert answer.status in (413, 422)
            for reader, writer in slow:
                head = await reader.readuntil(b"\r\n")
                assert head.startswith(b"HTTP/1.1 400 ")
                writer.close()
        async with client.post(URL + "/run?language=toy", data=b"true") as answer:
            assert answer.status == 200

    serve(scenario)


def test_head_answers_as_get_without_a_body(serve: Callable[..., Any]) -> None:
    async def scenario(client: Any, service: Service) -> None:
        for path in ("/healthz", "/languages", "/version", "/metrics"):
            async with client.head(URL + path) as answer:
                assert answer.status == 200, path
                assert await answer.read() == b""

    serve(scenario)


def test_a_socket_whose_other_end_is_closed_is_told_from_a_half_closed_one() -> None:
    def look(end: Callable[[socket.socket], None]) -> bool:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            end(theirs)
            return connections.is_gone(ours)

    assert not look(lambda theirs: None)
    assert not look(lambda theirs: theirs.shutdown(socket.SHUT_WR))
    assert look(lambda theirs: theirs.close())
