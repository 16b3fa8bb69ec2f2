"""`mayfly image check`, which is `imagegen check` too: a language's own snippets, each in a machine
of its image.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import click

from mayfly.cli.flags import OF_SERVER, Configured, load_config
from mayfly.cli.messages import plain
from mayfly.guests.zygote import Zygote
from mayfly.host.config import Config
from mayfly.imagegen.checks import Check, fault, load_checks


@click.command("check", cls=Configured, without=OF_SERVER)
@click.argument("image", metavar="LANGUAGE[@VERSION]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_command(image: str, as_json: bool, **flags: Any) -> int:
    """Run a language's own snippets (hello, standard input, exit status, an error of compilation,
    limits), each in a machine, and show how they went.

    Exit status: 0 if all did what they must.
    """
    from mayfly.host.checks import time_factor  # only here: other commands of images start sooner

    checks = load_checks(image.partition("@")[0])
    config = load_config(flags)
    zygote = Zygote.fork()
    return asyncio.run(_run(image, checks, config.scaled(time_factor(config)), lambda: zygote, as_json))


async def _run(image: str, checks: tuple[Check, ...], config: Config, zygote: Callable[[], Zygote], as_json: bool) -> int:
    from mayfly.host.snippet import Snippet
    from mayfly.runs.service import Service

    found: list[dict[str, Any]] = []
    async with Service(config, zygote) as service:
        chosen = service.find_image(image)
        width = max(len(check.name) for check in checks)
        for check in checks:
            source, stdin = check.source.encode(), check.stdin.encode()
            run = service.start(Snippet(source=source, stdin=stdin, limits={"run": check.limits}), chosen, publish=False)
            await run.done.wait()
            if run.outcome.error is not None:
                raise run.outcome.error
            last = run.outcome.steps[-1]
            wrong = fault(check, last.name, last.exit, *run.record.output(last.exit.step))
            took = sum(step.exit.wall_us for step in run.outcome.steps) / 1e3
            found.append({"name": check.name, "ok": not wrong, "wall_ms": round(took, 3), "fault": wrong})
            if not as_json:
                click.echo(plain(f"{'FAILED' if wrong else 'ok':6}  {check.name:{width}}  {took:8.0f} ms  {wrong}".rstrip()))
            await service.settled(run)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"{chosen.manifest.language} {chosen.manifest.version}: {sum(one['ok'] for one in found)} of {len(found)} are right")
    return 0 if all(one["ok"] for one in found) else 1
