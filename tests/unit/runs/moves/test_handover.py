"""The tables of the handover, played against each other in every order of events there is: never do
both servers run the machine, and once nothing more can happen, one of them does.
"""

from collections import deque
from typing import NamedTuple

from mayfly.runs.moves.handover import DESTINATION, SOURCE, Action, Destination, Input, Source

OVER = (Source.GIVEN, Source.KEPT)
AT_ONCE = {Action.COMMIT: Input.COMMIT, Action.SAY_READY: Input.READY, Action.RUN: Input.RUNNING, Action.TAKE: Input.FITS}
AT_ONCE |= {Action.REFUSE: Input.MISFITS, Action.DISCARD: Input.BROKEN}
ANSWERS = {Action.SAY_RUNNING: Input.RUNNING, Action.SAY_UNKNOWN: Input.UNKNOWN}
FAULTS, RESTARTS = 4, 1


class World(NamedTuple):
    """All that matters. `there` is None where the server there has been restarted. `first` are the
    messages on the first connection to the destination and from it, None once it is lost for that
    side; `asked` the same of the connection on which the source asks, `faults` and `restarts` what
    may still go wrong.
    """

    here: Source
    there: Destination | None
    to_there: tuple[Input, ...] | None
    to_here: tuple[Input, ...] | None
    asked: tuple[Input, ...] | None
    ran: bool
    faults: int
    restarts: int

    @property
    def runs_here(self) -> bool:
        return self.here in (Source.OFFERED, Source.COPYING, Source.KEPT)

    @property
    def runs_there(self) -> bool:
        return self.there is Destination.RUNNING


FIRST = World(Source.OFFERED, Destination.OFFERED, (), (), None, False, FAULTS, RESTARTS)


def here(world: World, happened: Input) -> World:
    """The source takes an input; one that its table does not have is a cut."""
    state, action = SOURCE[world.here, happened if (world.here, happened) in SOURCE else Input.CUT]
    assert isinstance(state, Source)
    world = world._replace(here=state)
    if action is Action.GO_ON:
        world = world._replace(to_here=None)  # it closes the connection, which the other sees later
    if action is Action.CONNECT_AND_ASK:
        world = world._replace(to_here=None, asked=(Input.ASK,))
    sent = AT_ONCE.get(action)
    if sent is not None and world.to_there is not None:
        world = world._replace(to_there=(*world.to_there, sent))
    return world


def there(world: World, happened: Input) -> World:
    """The destination takes an input."""
    assert world.there is not None
    if (world.there, happened) not in DESTINATION:
        happened = Input.CUT
    state, action = DESTINATION[world.there, happened]
    assert isinstance(state, Destination)
    world = world._replace(there=state, ran=world.ran or state is Destination.RUNNING)
    if action in ANSWERS:
        return world._replace(asked=(ANSWERS[action],))
    if happened is Input.CUT:
        return world._replace(to_there=None)
    sent = AT_ONCE.get(action)
    if sent is not None and world.to_here is not None:
        world = world._replace(to_here=(*world.to_here, sent))
    return world


def successors(world: World) -> list[World]:
    """All that can happen next."""
    found = []
    if world.there is Destination.OFFERED:
        found += [there(world, Input.FITS), there(world, Input.MISFITS)]
    if world.to_there and world.there is not None:  # a message arrives there
        found.append(there(world._replace(to_there=world.to_there[1:]), world.to_there[0]))
    if world.to_here and world.here not in OVER:
        found.append(here(world._replace(to_here=world.to_here[1:]), world.to_here[0]))
    if world.here is Source.COPYING:
        found.append(here(world, Input.COPIED)._replace(to_there=None if world.to_there is None else (*world.to_there, Input.COPIED)))
    if world.to_here is None and world.to_there == () and world.there is not None:  # it notices that the source has gone
        found.append(there(world, Input.CUT))
    if world.to_there is None and world.to_here == () and world.here not in OVER:
        found.append(here(world._replace(to_here=None), Input.CUT))
    if world.here is Source.ASKING and world.asked:
        if world.asked == (Input.ASK,):
            found.append(world._replace(asked=(Input.UNKNOWN,)) if world.there is None else there(world, Input.ASK))
        else:
            found.append(here(world._replace(asked=None), world.asked[0]))
    found.append(here(world, Input.CANCEL) if world.here not in OVER else world)
    if world.faults:
        less = world._replace(faults=world.faults - 1)
        if world.to_here is not None and world.here not in OVER:  # the source loses the connection, with what is on the way to it
            found.append(here(less._replace(to_here=None), Input.CUT))
        if world.to_there is not None and world.there is not None:  # the destination does
            found.append(there(less._replace(to_there=None), Input.CUT))
        if world.to_there:  # a message is lost with the connection
            found.append(less._replace(to_there=world.to_there[:-1], to_here=None if world.here in OVER else world.to_here))
        if world.here not in OVER:
            found.append(here(less, Input.FAULT))
            if world.here is Source.ASKING:
                found.append(here(less, Input.CUT))
        if world.there is not None:
            found.append(there(less, Input.FAULT))
    if world.restarts and world.there is not None:
        found.append(
            world._replace(there=None, to_there=None, to_here=() if world.to_here is not None else None, restarts=world.restarts - 1)
        )
    return [other for other in found if other != world]


def test_every_order_of_events() -> None:
    seen, left = {FIRST}, deque([FIRST])
    ends = set()
    while left:
        world = left.popleft()
        assert not (world.runs_here and world.runs_there), f"both run the machine: {world}"
        if world.ran and world.there is not None:
            assert not world.runs_here, f"the source lets a machine go on that has run elsewhere: {world}"
        if world.here is Source.GIVEN:
            assert world.ran
        following = successors(world)
        if not following:
            ends.add((world.here, world.there))
        for other in following:
            if other not in seen:
                seen.add(other)
                left.append(other)
    met = {(world.here, world.there) for world in seen}
    assert {(Source.ASKING, state) for state in (Destination.READY, Destination.RUNNING, Destination.DISCARDED, None)} <= met
    assert {end[0] for end in ends} == set(OVER), "the source must come to know in the end"
    for source, destination in ends:
        if source is Source.GIVEN:
            assert destination in (Destination.RUNNING, None)  # None: it was lost with its server
        else:
            assert destination is not Destination.RUNNING


def test_the_tables_name_every_state() -> None:
    assert {state for state, _ in SOURCE} | {step.state for step in SOURCE.values()} == set(Source)
    assert {state for state, _ in DESTINATION} | {step.state for step in DESTINATION.values()} == set(Destination)


def test_nothing_takes_the_commit_back() -> None:
    after = (Source.COMMITTED, Source.ASKING)
    ways = {(happened, step.state) for (state, happened), step in SOURCE.items() if state in after and step.state not in after}
    assert ways == {(Input.RUNNING, Source.GIVEN), (Input.UNKNOWN, Source.KEPT), (Input.BROKEN, Source.KEPT)}
