"""Which crates a program of an image needs, as cargo would choose them.

The Cargo Book: dependency resolution, features.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from semantic_version import Version  # type: ignore[import-untyped]

from mayfly.errors import ConfigError, ImageError
from mayfly.imagegen.packages.cfg import Programs, holds
from mayfly.imagegen.packages.crate_index import Dependency, Index, Release, spec

MAX_PACKAGES = 1000
MAX_PASSES = 200
_BY_US = "--package"
_Places = dict[tuple[str, tuple[str, ...]], str]
"""Versions by a crate's name and what is compatible with them."""


@dataclasses.dataclass(eq=False)
class Crate:
    """A crate that is chosen, with the features that are wanted of it. One that is not `here` is
    only for other systems.
    """

    known: Release
    features: set[str] = dataclasses.field(default_factory=set)
    here: bool = False
    asked: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        """`serde-1.0.217`"""
        return f"{self.known.name}-{self.known.vers}"


def _kin(version: str) -> tuple[str, ...]:
    """What versions have in common that a program has only one of: 1, 0.8, 0.0.3."""
    numbers = version.split("+")[0].split("-")[0].split(".")
    first = next((place for place, number in enumerate(numbers) if number != "0"), len(numbers) - 1)
    return tuple(numbers[: first + 1])


class _AgainError(Exception):
    """A version that was chosen does not fit; another one is known to."""


def resolve(wanted: Iterable[tuple[str, str, frozenset[str]]], index: Index, programs: Programs) -> list[Crate]:
    """The crates of what is wanted (name, requirement, features) and of all that it needs, sorted
    by name and version: of compatible versions one, the newest that fits. `programs` are the
    image's.

    Raises:
        ConfigError: a crate is asked for twice.
        ImageError: one cannot be had, or two contradict each other.
    """
    wanted = list(wanted)
    if len({name for name, *_ in wanted}) < len(wanted):
        raise ConfigError("a crate is asked for twice", hint="a snippet can name one version of it")
    pinned: _Places = {}
    for _ in range(MAX_PASSES):
        try:
            return _Search(index, programs, pinned).find(wanted)
        except _AgainError:
            continue
    raise ImageError(f"after {MAX_PASSES} tries no set of crates fits together", hint="say which versions you want")


class _Search:
    """One try: what was `pinned` by those before it is taken."""

    def __init__(self, index: Index, programs: Programs, pinned: _Places) -> None:
        self._index = index
        self._programs = programs
        self._pinned = pinned
        self._chosen: dict[tuple[str, tuple[str, ...]], Crate] = {}
        self._changed = False

    def find(self, wanted: Iterable[tuple[str, str, frozenset[str]]]) -> list[Crate]:
        for name, req, features in wanted:
            self._need(name, req, {*features, "default"}, by=_BY_US, here=True)
        while self._changed:
            self._changed = False
            for crate in [crate for crate in self._chosen.values() if crate.here]:
                for need, features in _needs(crate):
                    if need.registry:
                        raise ImageError(f"{crate.label} needs {need.name} of another index", hint="do not use the crate")
                    here = holds(need.target or "", self._programs)
                    self._need(need.package or need.name, need.req, features, by=crate.label, here=here)
        return sorted(self._chosen.values(), key=lambda crate: (crate.known.name, Version(crate.known.vers)))

    def _need(self, name: str, req: str, features: Iterable[str], *, by: str, here: bool) -> None:
        wanted = spec(req, by)
        same = [crate for (known, _), crate in self._chosen.items() if known == name and wanted.match(Version(crate.known.vers))]
        crate = max(same, key=lambda crate: Version(crate.known.vers), default=None) or self._choose(name, req, by)
        if req not in crate.asked:
            crate.asked.append(req)
        if here and not crate.here:
            crate.here = self._changed = True
        if not crate.features.issuperset(features):
            crate.features |= {*features}
            self._changed = True

    def _choose(self, name: str, req: str, by: str) -> Crate:
        known = self._index.choose(name, [req], by)
        if known is None:
            newest = self._index.newest(name)
            has = f"the newest for this compiler is {newest}" if newest else "there is none for this compiler"
            raise ImageError(f"{by} needs {name}@{req}, of which the index has no version: {has}", hint="ask for another version")
        key = name, _kin(known.vers)
        if key in self._pinned:
            known = self._index.choose(name, [f"={self._pinned[key]}"], by) or known
        if key in self._chosen:
            there = self._chosen[key]
            fits = self._index.choose(name, [*there.asked, req], by)
            if fits is None or self._pinned.get(key) == fits.vers:
                raise ImageError(f"{by} needs {name}@{req}, and {there.known.vers} is chosen", hint="ask for versions that go together")
            self._pinned[key] = fits.vers
            raise _AgainError
        if len(self._chosen) >= MAX_PACKAGES:
            raise ImageError(f"these are more than {MAX_PACKAGES} crates", hint="ask for fewer")
        self._chosen[key] = Crate(known)
        self._changed = True
        return self._chosen[key]


def _needs(crate: Crate) -> Iterator[tuple[Dependency, frozenset[str]]]:
    """What a crate needs with its features, and the features of that (features, Features
    dependencies).

    Raises:
        ImageError: it has not a feature that is wanted of it.
    """
    known = crate.known.all_features()
    on: set[str] = set()
    todo = sorted(crate.features)
    extra: dict[str, set[str]] = {}
    wanted = {need.name for need in crate.known.deps if not need.optional}
    while todo:
        text = todo.pop()
        if text in on:
            continue
        on.add(text)
        name, slash, feature = text.partition("/")
        if slash:
            extra.setdefault(name.rstrip("?"), set()).add(feature)
            if not name.endswith("?"):
                wanted.add(name)
                todo += [name] if name in known else []
        elif text.startswith("dep:"):
            wanted.add(text[4:])
        elif text in known:
            todo += known[text]
        elif text != "default":
            raise ImageError(f"{crate.label} has no feature {text!r}", hint=f"those it has: {', '.join(sorted(known)[:20]) or 'none'}")
    for need in crate.known.deps:
        if need.kind != "dev" and need.name in wanted:
            usual = {"default"} if need.default_features else set()
            yield need, frozenset({*need.features, *usual, *extra.get(need.name, ())})
