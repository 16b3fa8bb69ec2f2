"""The doors besides the Unix socket: TCP addresses, with TLS."""

import contextlib
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from mayfly.errors import ConfigError, HostError
from mayfly.host.addresses import Address, parse_address
from mayfly.host.config import Config

BACKLOG = 128
KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""A client whose host is gone is noticed after a minute (tcp(7), in seconds)."""


class Door(NamedTuple):
    """A listening TCP socket; with `tls`, what comes in speaks TLS. Every path that comes in stands
    behind `prefix`.
    """

    listener: socket.socket
    tls: ssl.SSLContext | None
    prefix: str = ""

    @property
    def url(self) -> str:
        """Its address, for clients."""
        host, port = self.listener.getsockname()[:2]
        return f"{'https' if self.tls else 'http'}://{Address(host, port)}"


@contextlib.contextmanager
def open_doors(config: Config, narrow: Mapping[str, str] = {}, activated: Iterable[socket.socket] = ()) -> Iterator[tuple[Door, ...]]:
    """Listen at the TCP addresses of the configuration, at those in `narrow`, which have a prefix
    each, and on the `activated` sockets; on leaving, no longer.

    Raises:
        ConfigError: an address is none, or would be open to other hosts without TLS.
        HostError: it cannot be listened at.
    """
    with contextlib.ExitStack() as opened:
        wanted = [*((text, "") for text in config.listen), *narrow.items()]
        listeners = [(opened.enter_context(one), "") for one in activated]
        tls = load_tls(config) if (wanted or listeners) and config.tls_certificate else None
        listeners += [(opened.enter_context(one), prefix) for text, prefix in wanted for one in _listen(parse_address(text))]
        if tls is None and not config.insecure:
            hint = "set tls_certificate and tls_key, or --insecure behind a proxy that has TLS"
            _check_loopback([listener for listener, _ in listeners], "listen", "there is no TLS", hint)
        for listener, _ in listeners:  # only now: nobody connects to a server that will not be
            listener.listen(BACKLOG)
        yield tuple(Door(listener, tls, prefix) for listener, prefix in listeners)


@contextlib.contextmanager
def open_keyless(text: str, config: Config) -> Iterator[tuple[socket.socket, ...]]:
    """Listen at the address of `function_listen`, where no keys are asked for; on leaving, no
    longer.

    Raises:
        ConfigError, HostError: as of open_doors.
    """
    with contextlib.ExitStack() as opened:
        listeners = tuple(opened.enter_context(one) for one in _listen(parse_address(text)))
        if not config.insecure:
            hint = "give an address of loopback, or --insecure where only those who may can connect"
            _check_loopback(listeners, "function_listen", "it asks for no key", hint)
        for listener in listeners:
            listener.listen(BACKLOG)
        yield listeners


def _check_loopback(listeners: Iterable[socket.socket], key: str, lacking: str, hint: str) -> None:
    for listener in listeners:
        host = listener.getsockname()[0]
        if not ip_address(host).is_loopback:
            raise ConfigError(f"{key}: {host} can be reached from other hosts, and {lacking}", hint=hint)


def load_tls(config: Config, context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """A context with the configured certificate; if one is given, it has the files' present content
    from now on.

    Raises:
        ConfigError: a file cannot be read, or they do not belong together.
    """
    context = context or ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(Path(config.tls_certificate).expanduser(), Path(config.tls_key).expanduser(), password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "reason", "") or getattr(error, "strerror", "") or error
        raise ConfigError(
            f"the certificate {config.tls_certificate} with the key {config.tls_key} cannot be used: {reason}",
            hint="give a certificate chain and its unencrypted private key as PEM files that this user can read",
        ) from error
    return context


def _listen(address: Address) -> Iterator[socket.socket]:
    """A bound socket for each address that the host has."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"listen: {address.host[:80]!r} is not known: {error.strerror or error}", hint="give an address of this host"
        ) from error
    for family, kind, protocol, _, where in found:
        listener = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for option, value in KEEPALIVE.items():
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
            listener.bind(where)
        except OSError as error:
            listener.close()
            raise HostError(f"{address}: cannot listen there: {error.strerror}", hint="choose another address or port") from error
        yield listener
