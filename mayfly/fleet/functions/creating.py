"""How a fleet's functions are created and removed: by any gateway, for an operator."""

import asyncio
import secrets

from mayfly.errors import ConfigError, UnknownFunctionError, UnprocessableError
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine
from mayfly.fleet.functions.gateway import CREATE_S, FleetFunctions
from mayfly.fleet.functions.messages import CREATING, Asked, Change, CodeAsk, FleetFunction, Stored, dump, load, make
from mayfly.fleet.message import decode, encode
from mayfly.fleet.roll import Roll
from mayfly.fleet.shared import Shared, ask
from mayfly.fleet.wire import error_of
from mayfly.functions.spec import FunctionSpec
from mayfly.functions.store import make_function
from mayfly.host.snippet import check_paths
from mayfly.schema import decode as from_json

SUBJECT = "functions"


def shared_functions(bucket: Bucket) -> Shared[FleetFunction]:
    """The fleet's functions."""
    return Shared(bucket, "functions", load, dump, lambda each: each.function)


class Creating:
    """Creates functions, each after a host has built and loaded it."""

    def __init__(self, engine: Engine, bucket: Bucket, roll: Roll, shared: Shared[FleetFunction], functions: FleetFunctions) -> None:
        self._engine, self._bucket, self._roll, self._shared, self._functions = engine, bucket, roll, shared, functions

    async def change(self, data: bytes) -> bytes:
        """Do what an operator asks for."""
        change = decode(data, type=Change)
        if change.spec:
            return await self._create(from_json(FunctionSpec, change.spec), dict(change.code))

        gone: list[FleetFunction] = []

        def edit(functions: list[FleetFunction]) -> None:
            gone[:] = [each for each in functions if change.remove and each.name == change.remove]
            if change.remove and not gone:
                raise UnknownFunctionError(f"the fleet has no function {change.remove[:64]!r}", hint="mayfly function list --fleet URL")
            functions[:] = [each for each in functions if each not in gone]

        kept = await self._shared.change(edit)
        await self._forget(gone)
        for function in gone:
            await self._functions.remove_queue(function)
        return kept

    async def _create(self, spec: FunctionSpec, code: dict[str, bytes]) -> bytes:
        image = self._roll.find(spec.language)
        how = image.manifest.function
        if how is None:
            raise UnprocessableError(
                f"the image of {image.manifest.language} {image.manifest.version} loads no functions", hint="build it again"
            )
        if set(code) == {""}:
            code = {how.source_file or image.manifest.source_file: code[""]}
        if not code:
            raise ConfigError("the function has no code", hint="give the path of its file or folder")
        check_paths(code)
        memory = max(spec.memory, image.manifest.memory)
        function = make(make_function(spec, code), image.manifest.arch, memory)
        await self._bucket.put(f"code.{function.key}", encode(Stored(function=function, code=code)))
        before: list[FleetFunction] = []
        try:
            await self._try_out(function)

            def edit(functions: list[FleetFunction]) -> None:
                before[:] = [each for each in functions if each.name == spec.name]
                functions[:] = [*(each for each in functions if each not in before), function]

            kept = await self._shared.change(edit)
        except BaseException:
            await asyncio.shield(self._forget([function]))
            raise
        await self._shared.refresh()
        await self._forget(before)
        return kept

    async def _try_out(self, function: FleetFunction) -> None:
        """Have a host build and load it."""
        request = Asked(id=secrets.token_hex(16), token=secrets.token_hex(16), gateway=self._engine.name, key=function.key, creates=True)
        waiting = await self._functions.put(function, request, CREATING)
        if (problem := error_of((await self._functions.wait(waiting)).error)) is not None:
            raise problem

    async def _forget(self, functions: list[FleetFunction]) -> None:
        for function in functions:
            await self._bucket.delete(f"code.{function.key}")

    async def code(self, data: bytes) -> bytes:
        """What a host is told that asks for a function.

        Raises:
            UnknownFunctionError: it is no more.
        """
        entry = await self._bucket.get(f"code.{decode(data, type=CodeAsk).key}")
        if entry is None:
            raise UnknownFunctionError("the function was changed or removed")
        return entry.value


async def change(engine: Engine, wanted: Change) -> list[FleetFunction]:
    """Have a gateway change the fleet's functions; all of them after that.

    Raises:
        FunctionFailedError: it cannot be built or loaded.
        MayflyError: it cannot be, for another reason.
        FleetError: no gateway answers.
    """
    return load(await ask(engine, SUBJECT, encode(wanted), 2 * CREATE_S))
