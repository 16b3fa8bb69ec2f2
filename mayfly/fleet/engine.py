"""The engine of a fleet: NATS with JetStream, which only this module, streams.py, buckets.py and
failures.py know.

It gives five things: streams of work from which each piece goes to one host at a time until that
one acknowledges it; buckets whose keys can be created once; messages to whoever listens; requests
to them, which fail at once if nobody does; and the order in which waiting hosts are served.

run.now.ARCH.LANG    subjects of no stream: work that a host takes at once, or not at all
RUNS_ARCH    stream of work for hosts of one architecture, subjects run.ARCH.LANG.PIECE; written to
             disk on every server of the cluster before it is acknowledged
ARCH_LANG    its consumers; hosts pull from them, those with the lowest priority number first
KV_runs, KV_results, KV_accounts    buckets; values are dropped an hour after they were written
KV_fleet     a bucket whose values stay
"""

import asyncio
import base64
import collections
import contextlib
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import APIError, NotFoundError

from mayfly.errors import FleetError
from mayfly.fleet.buckets import WRONG_SEQUENCE, Buckets, prepare
from mayfly.fleet.failures import FullError, NobodyError, SilenceError, TooLargeError, translated
from mayfly.fleet.message import GROUP
from mayfly.fleet.streams import NS, STREAM, consumer_config, stream_config, stream_of, subject_of
from mayfly.schema import Record

log = logging.getLogger(__name__)
CONNECT_S = 10.0
TIMEOUT_S = 5.0
"""For an answer of the engine itself."""
DEFAULT_ACK_WAIT_S = 5.0
LEAVE_S = 2
LOST_S = 5.0
"""After a pull's time, until it is known to be lost: its server was killed, and says nothing."""
MADE_ALREADY = (10058, 10148)
"""Their codes for a stream and a consumer that are there, made with other settings."""
NOT_FOUND = (10014, 10037, 10059)
"""The codes for a consumer, a message and a stream that are not there."""
MOST_UNREAD = 20
"""Times that work which cannot be read is given out, UNREAD_S apart."""
UNREAD_S = 1.0
LEAST_PAYLOAD = 8 << 20
"""Bytes of a message that the servers must take: an answer of a function with what is around it."""
ROOM = 1024
"""For a message's headers."""
INBOX = "_INBOX_"
"""Before a member's name: where answers to it go, and nothing else."""
PULL = "pull"


class Credentials(Record, frozen=True, kw_only=True):
    """How one comes into a fleet: files with the authority of its certificates, and with a seed."""

    ca: str = ""
    seed: str = ""


class Message(NamedTuple):
    """A message; `reply` is where an answer goes, an inbox, if one is wanted."""

    subject: str
    data: bytes
    reply: str

    def reply_to(self, name: str) -> str:
        """Where an answer to this member goes; "" if that is not an inbox of its own: whoever
        answers may say more, and elsewhere, than who asks.
        """
        return self.reply if self.reply.startswith(f"{INBOX}{name}.") else ""


class Load(NamedTuple):
    """Work of a consumer: what no host has had yet, what was given out and is not done, and how
    much of that was given out more than once.
    """

    waiting: int
    given: int
    again: int


class Delivery(NamedTuple):
    """A piece of work: where it is acknowledged, and how often it was given out so far. Work that
    was handed over directly has no `ack` and was given out 0 times; `reply` is where that is
    answered.
    """

    data: bytes
    ack: str
    delivered: int
    reply: str = ""


def _load_tls(ca: str) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=ca) if ca else None


class Engine:
    """A connection to the fleet's engine, under a name. Use `connect`.

    Attributes:
        on_return: called when a connection that was lost is there again.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.on_return: list[Callable[[], None]] = []
        self._closing = False
        self._client = client
        self._stream = client.jetstream(timeout=TIMEOUT_S)
        self._pulls: dict[str, collections.deque[asyncio.TimerHandle]] = collections.defaultdict(collections.deque)
        self._hear_work: Callable[[str, Delivery | None], None] = lambda _, __: None
        self._of_work: list[Subscription] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, urls: Sequence[str], name: str, credentials: Credentials | None = None) -> AsyncIterator["Engine"]:
        """A connection that is made again whenever it is lost.

        Raises:
            FleetError: no server can be reached, or it lets nobody in with these credentials.
        """
        given = credentials or Credentials()
        known: list[Engine] = []
        said, refused = "", asyncio.Event()

        async def report(error: Exception) -> None:
            nonlocal said
            if not _is_refusal(said):  # that says most; then the connection is closed
                said = str(error) or type(error).__name__
            if _is_refusal(said):
                refused.set()
            if isinstance(error, nats.errors.Error) and "permissions violation" in said.lower():
                log.error("fleet: %s", said)
            elif not isinstance(error, nats.errors.Error | OSError | TimeoutError):  # of whoever was told of a message
                log.error("fleet: what came cannot be dealt with", exc_info=error)
            else:
                log.debug("fleet: %r", error)

        async def returned() -> None:
            log.info("the fleet's servers are there again")
            if known:
                known[0]._forget_pulls()
            for call in known[0].on_return if known else ():
                call()

        async def lost() -> None:
            if known and not known[0]._closing:
                log.warning("the connection to the fleet's servers is lost")

        async def closed() -> None:
            if known and not known[0]._closing:
                log.error("the fleet's servers let %s in no more; start it again when it has a token", name)

        options: dict[str, Any] = {"nkeys_seed": given.seed} if given.seed else {}
        hint = "look at the address, and at the files of the seed and of the authority"
        client = Client()
        try:
            if context := _load_tls(given.ca):
                options["tls"] = context
            connecting = client.connect(
                list(urls),
                name=name,
                error_cb=report,
                reconnected_cb=returned,
                disconnected_cb=lost,
                closed_cb=closed,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.1,  # type: ignore[arg-type]  # it sleeps so long
                connect_timeout=5,
                ping_interval=5,
                max_outstanding_pings=2,
                inbox_prefix=f"{INBOX}{name}".encode(),
                **options,
            )
            await _within(CONNECT_S, connecting, refused)  # by itself it would try for ever
        except (OSError, ValueError, nats.errors.Error, TimeoutError) as error:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await client.close()
            raise FleetError(f"{', '.join(urls)}: {said or error or 'no server answers'}", hint=hint) from error
        if client.max_payload < LEAST_PAYLOAD:
            await client.close()
            what = f"the fleet's servers take messages of {client.max_payload} bytes at most"
            raise FleetError(f"{what}; {LEAST_PAYLOAD} are needed", hint="set max_payload: 32MB on all of them")
        engine = cls(client, name)
        known.append(engine)
        try:
            yield engine
        finally:
            await engine.close()

    async def close(self) -> None:
        """Send what is to be sent, and leave."""
        self._closing = True
        self._forget_pulls()
        with contextlib.suppress(NobodyError, SilenceError), translated():
            if self._client.is_connected:
                await self._client.flush(LEAVE_S)
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self._client.close()

    @property
    def connected(self) -> bool:
        """Whether a server can be reached now, as far as is known."""
        return bool(self._client.is_connected)

    async def prepare(self, replicas: int) -> Buckets:
        """Make what the fleet needs, if it is not there.

        Raises:
            FleetError: it cannot be made.
        """
        return await prepare(self._stream, replicas)

    async def ensure_consumer(self, arch: str, lang: str, *, replicas: int, ack_wait_s: float) -> None:
        """Make the stream of the architecture and its consumer of the language, if need be.

        Raises:
            SilenceError: not now.
            FleetError: the engine refuses.
        """
        config = stream_config(arch, replicas)
        stream = config["name"]
        made = await self._api(f"STREAM.CREATE.{stream}", config)
        if "error" in made:  # it is there; a build before may have made it, for less time
            there = (await self._api(f"STREAM.INFO.{stream}", {}))["config"]
            if there["max_age"] < config["max_age"]:
                await self._api(f"STREAM.UPDATE.{stream}", {**there, "max_age": config["max_age"]})
        consumer = {"stream_name": stream, "config": consumer_config(arch, lang, ack_wait_s)}
        await self._api(f"CONSUMER.CREATE.{stream}.{arch}_{lang}.run.{arch}.{lang}.*", consumer)

    async def remove_consumer(self, arch: str, lang: str) -> None:
        """Have no consumer of the language, if there is one.

        Raises:
            SilenceError: not now.
            FleetError: the engine refuses.
        """
        await self._api(f"CONSUMER.DELETE.{stream_of(arch)}.{arch}_{lang}", {}, but=NOT_FOUND)

    async def _api(self, subject: str, body: dict[str, Any], but: Sequence[int] = MADE_ALREADY) -> dict[str, Any]:
        with translated():
            found = await self._client.request(f"$JS.API.{subject}", json.dumps(body).encode() if body else b"", timeout=TIMEOUT_S)
        answer: dict[str, Any] = json.loads(found.data)
        problem = answer.get("error", {})
        if problem and problem.get("err_code") not in but:
            raise FleetError(f"the fleet's servers refuse {subject}: {problem.get('description')}", hint="docs/fleet.md has the limits")
        return answer

    async def quorum(self) -> bool:
        """Whether the servers can store something now."""
        try:
            with translated():
                found = await self._client.request("$JS.API.STREAM.INFO.KV_runs", b"", timeout=1)
            answer = json.loads(found.data)
        except (NobodyError, SilenceError):
            return False
        cluster = answer.get("cluster")
        return "error" not in answer and (cluster is None or bool(cluster.get("leader")))

    async def load(self, arch: str, lang: str) -> Load:
        """How much work of the consumer there is. Raises SilenceError, FleetError."""
        answer = await self._api(f"CONSUMER.INFO.{stream_of(arch)}.{arch}_{lang}", {})
        return Load(*(int(answer.get(f"num_{what}", 0)) for what in ("pending", "ack_pending", "redelivered")))

    async def next_work(self, arch: str, lang: str, number: int) -> tuple[int, bytes] | None:
        """The first work of the consumer with that number or a higher one, waiting or under way;
        its number, and the work. Raises SilenceError, FleetError.
        """
        asked = {"seq": number, "next_by_subj": f"run.{arch}.{lang}.*"}
        found = (await self._api(f"STREAM.MSG.GET.{stream_of(arch)}", asked, but=NOT_FOUND)).get("message")
        return (int(found["seq"]), base64.b64decode(found.get("data", ""))) if found else None

    async def archs(self) -> list[str]:
        """The architectures that have a stream. Raises SilenceError, FleetError."""
        names = (await self._api("STREAM.NAMES", {"subject": "run.>"})).get("streams") or []
        return [name.removeprefix(STREAM) for name in names]

    async def consumers(self, arch: str) -> list[str]:
        """The languages, and other queues, that the stream of the architecture has. Raises
        SilenceError, FleetError.
        """
        found: list[str] = []
        while True:
            answer = await self._api(f"CONSUMER.NAMES.{stream_of(arch)}", {"offset": len(found)}, but=NOT_FOUND)
            names = answer.get("consumers") or []
            found += names
            if not names or len(found) >= answer["total"]:
                return [name.removeprefix(f"{arch}_") for name in found]

    async def put(self, arch: str, lang: str, data: bytes, message_id: str) -> int:
        """Store work; it is safe when this returns, and its number in the stream is given. The same
        id again stores nothing; the number may be 0 then.

        Raises:
            FullError: there is too much of it already.
            TooLargeError: it is too long.
            SilenceError: it may be stored or not.
        """
        self.check_size(data)
        with translated():
            try:
                headers = {"Nats-Msg-Id": message_id, "Nats-Expected-Last-Subject-Sequence": "0"}
                ack = await self._stream.publish(subject_of(arch, lang, message_id), data, timeout=TIMEOUT_S, headers=headers)
            except NotFoundError:
                raise
            except APIError as error:
                if error.err_code == WRONG_SEQUENCE:
                    return 0
                raise FullError(error.description or "the stream refuses") from error
        return int(ack.seq)

    def check_size(self, data: bytes) -> None:
        """Raises TooLargeError: the servers take no message with that."""
        if len(data) + ROOM > self._client.max_payload:
            raise TooLargeError(f"{len(data)} bytes; the fleet's servers take {self._client.max_payload - ROOM}")

    async def holds(self, arch: str, lang: str, message_id: str) -> bool:
        """Whether there is such work, waiting or under way. Raises SilenceError, FleetError."""
        asked = {"last_by_subj": subject_of(arch, lang, message_id)}
        return "message" in await self._api(f"STREAM.MSG.GET.{stream_of(arch)}", asked, but=NOT_FOUND)

    async def take_back(self, arch: str, number: int) -> None:
        """Remove work that no host has taken."""
        with contextlib.suppress(FleetError, NobodyError, SilenceError):
            await self._api(f"STREAM.MSG.DELETE.{stream_of(arch)}", {"seq": number, "no_erase": True})

    async def send(self, subject: str, data: bytes) -> None:
        """Send to whoever listens, if anybody does; without a subject or a connection to nobody."""
        if not subject:
            return
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(subject, data)

    async def ask(self, subject: str, data: bytes, timeout_s: float = TIMEOUT_S) -> bytes:
        """Send, and wait for an answer.

        Raises:
            NobodyError: nobody listens.
            SilenceError: there is none in time.
        """
        with translated():
            return bytes((await self._client.request(subject, data, timeout=timeout_s)).data)

    async def listen(self, subject: str, hear: Callable[[Message], object], queue: str = "") -> None:
        """Have `hear` called with each message to the subject; of those who listen with the same
        `queue` one is.
        """
        await self._subscribe(subject, hear, queue)

    async def _subscribe(self, subject: str, hear: Callable[[Message], object], queue: str) -> Subscription:

        async def called(message: Msg) -> None:
            hear(Message(message.subject, message.data, message.reply if message.reply.startswith(INBOX) else ""))

        return await self._client.subscribe(subject, queue=queue, cb=called, pending_msgs_limit=-1, pending_bytes_limit=-1)

    async def listen_for_work(self, hear: Callable[[str, Delivery | None], None]) -> None:
        """Have `hear` called with what the pulls of `pull` bring: the language, and the work, or
        None when a pull has ended without any, or was lost with the server that had it.
        """
        self._hear_work = hear

        async def called(message: Msg) -> None:
            words = message.subject.split(".")
            lang = words[2] if words[0] == "run" else words[-1]
            status = (message.headers or {}).get("Status")
            if status == "100":
                return
            if self._pulls[lang]:
                self._pulls[lang].popleft().cancel()
            if status is not None:
                if status == "409":
                    log.debug("fleet: a pull of %s was refused: %s", lang, message.headers)
                hear(lang, None)
                return
            hear(lang, Delivery(message.data, message.reply, message.metadata.num_delivered))

        prefix = f"{INBOX}{self.name}.{PULL}"
        self._of_work.append(await self._client.subscribe(f"{prefix}.*", cb=called, pending_msgs_limit=-1, pending_bytes_limit=-1))

    async def hear_no_work(self) -> None:
        """Get no more work, which is to come to others; what was on its way has come when this
        returns.
        """
        with contextlib.suppress(NobodyError, SilenceError), translated():
            async with asyncio.timeout(LEAVE_S):
                for subscription in self._of_work if self.connected else ():
                    await subscription.drain()  # type: ignore[no-untyped-call]

    async def pull(self, arch: str, lang: str, *, priority: int, expires_s: float) -> None:
        """Ask for one piece of work; those who ask with a lower number are served first."""
        request = {"batch": 1, "expires": int(expires_s * NS), "group": GROUP, "priority": priority}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream_of(arch)}.{arch}_{lang}"
        self._pulls[lang].append(asyncio.get_running_loop().call_later(expires_s + LOST_S, self._lose_pull, lang))
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(subject, json.dumps(request).encode(), reply=f"{INBOX}{self.name}.{PULL}.{lang}")

    def _lose_pull(self, lang: str) -> None:
        self._pulls[lang].popleft()
        self._hear_work(lang, None)

    def _forget_pulls(self) -> None:
        for timers in self._pulls.values():
            for timer in timers:
                timer.cancel()
        self._pulls.clear()

    async def hand(self, arch: str, lang: str, data: bytes, timeout_s: float) -> bytes:
        """Have one of those take work who `listen_for_handed`; its answer.

        Raises:
            NobodyError: nobody does.
            TooLargeError: it is too long, also to be queued later.
            SilenceError: who was chosen does not answer, and has it or not.
        """
        self.check_size(data)
        return await self.ask(f"run.now.{arch}.{lang}", data, timeout_s)

    async def listen_for_handed(self, arch: str, lang: str, hear: Callable[[Delivery], object]) -> None:
        """Have `hear` called with work that is handed over."""
        subject = f"run.now.{arch}.{lang}"
        self._of_work.append(await self._subscribe(subject, lambda message: hear(Delivery(message.data, "", 0, message.reply)), GROUP))

    async def done(self, ack: str) -> None:
        """The work is done, and must be known to be: it is given to nobody any more."""
        with contextlib.suppress(NobodyError, SilenceError):
            if ack:
                await self.ask(ack, b"+ACK", 2)

    async def still_busy(self, ack: str) -> None:
        """The work goes on."""
        if ack:
            await self.send(ack, b"+WPI")

    async def give_back(self, ack: str, after_s: float = 0) -> None:
        """Others may have the work, after some time."""
        if ack:
            await self.send(ack, b'-NAK {"delay": %d}' % int(after_s * NS) if after_s else b"-NAK")

    async def leave(self, delivery: Delivery, error: ValueError) -> None:
        """Leave work that cannot be read here to members of another version. If there are none, it
        is removed.
        """
        if delivery.delivered < MOST_UNREAD:
            log.error("fleet: work cannot be read, and is left to members of another version: %s", error)
            await self.give_back(delivery.ack, UNREAD_S)
        elif delivery.ack:
            log.error("fleet: work is removed, as nobody can read it: %s", error)
            await self.send(delivery.ack, b"+TERM")


def _is_refusal(said: str) -> bool:
    """Whether an error stays the same however often one asks."""
    return "authorization violation" in said.lower() or "certificate verify failed" in said.lower()


async def _within(seconds: float, work: Coroutine[Any, Any, None], unless: asyncio.Event) -> None:
    """Do `work`, or raise TimeoutError, also when `unless` happens. A cancellation that it swallows
    is repeated: nats-py does that while it closes a connection that was refused.
    """
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(unless.wait())
    try:
        await asyncio.wait({task, stop}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError
        task.result()
    finally:
        stop.cancel()
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.05)
