"""A request to a function whose machine is killed goes on from its last save in another one, and is
answered once. The machine is a real one: a tiny guest plays the function.
"""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.functions import store
from mayfly.functions.lasting import Lasting
from mayfly.functions.making import FunctionMachines, Revision
from mayfly.functions.service import Functions
from mayfly.functions.spec import FunctionSpec
from mayfly.guests.start import Guest, StartKind, start
from mayfly.guests.zygote import Zygote
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.vmm.config import Channel
from tests.kit import tiny
from tests.kit.api_fakes import MARKER, install_toys, small_config
from tests.kit.function_fakes import invocation
from tests.kit.scale import patience, scaled
from tests.kvm.test_moved_run import CYCLE, playing

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

MOVED = p.encode_frame(p.Moved(0, bytes(16), "", "", bytes(16)), 0)[:4]
"""How the first frame begins for a machine that goes on elsewhere: the guest answers then."""
ANSWER = p.Response(1, p.ResponseKind.ANSWER, 5, "text/plain", 4, b"done")


class TinyMachines(FunctionMachines):
    """Guests that boot, and have their function loaded then."""

    async def start(self, revision: Revision) -> tuple[Guest, StartKind]:
        return await start(self._spawner, replace(revision.wanted, loaded=revision.loaded)), StartKind.COLD


@pytest.mark.parametrize("lost", ["process", "zygote"] * scaled(10))
def test_a_request_outlasts_its_vmm_process_and_its_zygote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: str) -> None:
    install_toys(monkeypatch, tmp_path)
    hello = p.Hello(p.PROTOCOL_VERSION, "toy", Images().arch, 1, MARKER)
    guest = playing(tmp_path, hello, opening=[p.Stdout(b"begun\n")], ending=[ANSWER], until=MOVED)
    config = small_config(tmp_path, kernel=tiny.build(tmp_path, guest), channel=Channel.SERIAL)
    zygotes: list[Zygote] = []
    saved: asyncio.Queue[Lasting] = asyncio.Queue()
    real = Lasting.save

    async def save(self: Lasting) -> None:
        await real(self)
        saved.put_nowait(self)

    monkeypatch.setattr(Lasting, "save", save)

    def begin() -> Zygote:
        zygotes.append(Zygote.start())
        return zygotes[-1]

    async def scenario(service: Service, functions: Functions) -> None:
        spec = FunctionSpec(name="count", language="toy", code="/code", timeout_s=600, checkpoint_every_s=1)
        with store.claimed("count"):
            store.save(store.make_function(spec, {}), {})
        answering = asyncio.create_task(functions.invoke(invocation("count", b"go!!")))
        lasting = await saved.get()
        machine = lasting.asking.guest.process
        printed = lasting.request.log
        until = len(printed) + 20
        while len(printed) < until:
            await asyncio.sleep(0.01)
        if lost == "process":
            service.spawner.signal(machine.number, signal.SIGKILL)
        else:
            os.kill(zygotes[-1].pid, signal.SIGKILL)
        answer = await answering
        assert (answer.status, answer.payload) == ("ok", b"done")
        begun, *lines = answer.log.decode().splitlines()
        assert begun == "begun"
        assert lines == [str(number % CYCLE) for number in range(len(lines))]
        assert lasting.asking.guest.process is not machine
        assert [path.name for path in paths.snapshots_dir().iterdir()] == []

    async def whole() -> None:
        async with Service(config, begin) as service:
            machines = TinyMachines(config, service.spawner, service.supply, service.networks)
            shared = (config, service.spawner, service.admission, service.supply, service.images, service.networks)
            async with Functions(*shared, machines=machines) as functions:
                await asyncio.wait_for(scenario(service, functions), patience(90))

    asyncio.run(whole())
