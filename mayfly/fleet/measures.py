"""The metrics of a whole fleet: those of each host, told apart by a label."""

import asyncio
import re
from collections.abc import Iterator

from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.gateway import Gateway

_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>.*)")
ASK_S = 2.0


class Measures:
    """What `GET /metrics` of a gateway gives."""

    def __init__(self, engine: Engine, gateway: Gateway) -> None:
        self._engine = engine
        self._gateway = gateway

    async def measure(self) -> bytes:
        """All metrics. A host that does not answer in time is left out, and not `up`."""
        names = [host.name for host in self._gateway.roll]
        texts = await asyncio.gather(*(self._ask(name) for name in names))
        answered = {name: text for name, text in zip(names, texts, strict=True) if text is not None}
        return merge(answered, [*self._own(), *(f'mayfly_fleet_up{{host="{name}"}} {int(name in answered)}' for name in names)])

    async def _ask(self, name: str) -> str | None:
        try:
            return (await self._engine.ask(f"measure.{name}", b"", ASK_S)).decode(errors="replace")
        except (NobodyError, SilenceError):
            return None

    def _own(self) -> Iterator[str]:
        gateway, host = self._gateway, f'host="{self._engine.name}"'
        totals = gateway.roll.totals()
        yield f"mayfly_fleet_followed{{{host}}} {gateway.under_way}"
        yield f"mayfly_fleet_accepted{{{host}}} {gateway.accepted}"
        yield f"mayfly_fleet_refused{{{host}}} {gateway.refused}"
        yield f"mayfly_fleet_given_back{{{host}}} {gateway.given_back}"
        yield f"mayfly_fleet_running {totals.running}"
        for each in gateway.roll:
            for image, percent in each.beat.fetching.items() if each.beat else ():
                yield f'mayfly_fleet_fetching_percent{{host="{each.name}",image="{image}"}} {percent}'


def merge(texts: dict[str, str], more: list[str]) -> bytes:
    """One text of those of several hosts, in which each family's samples stand together."""
    about: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for host, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                if line not in about.setdefault(family, []):
                    about[family].append(line)
            elif (found := _SAMPLE.fullmatch(line)) is not None:
                labels = f'host="{host}"' + (f",{found['labels']}" if found["labels"] else "")
                samples.setdefault(family, []).append(f"{found['name']}{{{labels}}} {found['value']}")
    lines = [line for family in samples for line in (*about.get(family, ()), *samples[family])]
    return "".join(f"{line}\n" for line in (*lines, *more)).encode()
