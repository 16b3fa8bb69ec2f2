"""Who has no token stays out, and who has one can do no more than it says."""

import asyncio
import json
import os
import platform
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema_rs
import pytest
import yaml
from click.testing import CliRunner

from mayfly.cli.fleet import drain
from mayfly.cli.main import cli, gateway, serve
from mayfly.errors import ConfigError, FleetError
from mayfly.fleet import engine, tokens
from mayfly.fleet.catalog import Ask
from mayfly.fleet.engine import Credentials, Engine, Message
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.functions.gateway import CREATE_S
from mayfly.fleet.message import Begin, Settle, Verdict, decode, encode
from tests.kit.api_fakes import ROOT, install_toys
from tests.kit.api_server import make_certificate
from tests.kit.fleet_kit import Fleet, in_fleet, until
from tests.unit.fleet.test_fleet import events, output, run, start, until_output

OF_OTHERS = (
    "wish.h1",
    "fn.settle.g1.h1.x",
    "fn.begin.h1.x",
    "fn.code.h1",
    "fn.ask.h1",
    "offers.h1",
    "keys",
    "images",
    "functions",
    "$KV.fleet.keys",
)
"""Subjects that the host h2 has nothing to say to."""
NOT_ITS_OWN = ("$KV.fleet.keys", "$KV.runs.x", "$JS.API.STREAM.DELETE.x", "_INBOX_h1.pull.x", "_INBOX_h22.x")


def test_tokens_are_kept_in_a_file(tmp_path: Path) -> None:
    users = tmp_path / "users" / "users.conf"
    tokens.create(users, "h1", "host", "x86_64")
    tokens.create(users, "g1", "gateway")
    assert [(one.name, one.kind, one.arch) for one in tokens.load(users)] == [("h1", "host", "x86_64"), ("g1", "gateway", "")]
    for name in ("h1", "a b", "any", "x" * 65, ""):
        with pytest.raises(ConfigError):
            tokens.create(users, name, "host", "x86_64")
    tokens.revoke(users, "h1")
    with pytest.raises(ConfigError):
        tokens.revoke(users, "h1")
    assert [one.name for one in tokens.load(users)] == ["g1"]


def test_lines_of_others_stay_in_the_file(tmp_path: Path) -> None:
    users = tmp_path / "users.conf"
    tokens.create(users, "h1", "host", "x86_64")
    head, ours, end = users.read_text().splitlines()[0], *users.read_text().splitlines()[2:]
    other = (
        '  { user: nats-cli, password: "secret", permissions: { publish: [\n    a\n  ] } }\n'
        "  { user: b, allowed_connection_types: [\n    STANDARD\n  ]\n  }"
    )
    before = f"{head}\nusers = [ # all\n{ours}\n{other}\n{end}\ndefault_permissions: {{ publish: [\n]\n}}\n"
    users.write_text(before)
    tokens.create(users, "g1", "gateway")
    assert [one.name for one in tokens.load(users)] == ["h1", "g1"]
    assert users.read_text().splitlines()[-4:] == [end, *before.splitlines()[-3:]]
    tokens.revoke(users, "g1")
    assert users.read_text() == before
    users.write_text("users: []\n")
    with pytest.raises(ConfigError):
        tokens.create(users, "g1", "gateway")
    assert users.read_text() == "users: []\n"


def test_a_token_whose_seed_cannot_be_kept_is_not_made(tmp_path: Path) -> None:
    users, seed = tmp_path / "users.conf", tmp_path / "h1.seed"

    def create(output: Path) -> int:
        return CliRunner().invoke(cli, ["fleet", "token", "create", "h1", "--users", str(users), "--output", str(output)]).exit_code

    assert create(tmp_path / "nowhere" / "h1.seed") == 2
    assert not users.exists()
    assert create(seed) == 0
    assert (seed.stat().st_mode & 0o777, seed.read_bytes()[:2]) == (0o600, b"SU")
    assert create(seed) == 2, "it is there"
    assert create(tmp_path / "again.seed") == 1, "so is the name"
    assert not (tmp_path / "again.seed").exists()


def test_a_gateway_may_answer_when_a_function_is_made() -> None:
    given = tokens.permissions("g1", "gateway", "")["allow_responses"]["expires"]
    assert given.endswith("m")
    assert 60 * int(given[:-1]) > 2 * CREATE_S


def secured(certificate: Path, key: Path, users: Path) -> Callable[[Path], str]:
    """A server's configuration, given its folder, beneath which an included file is taken to be."""

    def more(folder: Path) -> str:
        included = os.path.relpath(users, folder)
        return f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\nauthorization {{ include "{included}" }}'

    return more


def test_who_is_refused_hears_it_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a wrong token, and with a wrong authority."""
    monkeypatch.setattr(engine, "CONNECT_S", 3600.0)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    certificate, key = make_certificate(ours)
    other, _ = make_certificate(theirs)
    seed, _ = tokens.make_key()
    (tmp_path / "seed").write_bytes(seed)
    tokens.create(tmp_path / "users.conf", "h1", "host", "x86_64")

    async def scenario(fleet: Fleet) -> None:
        for authority, said in ((certificate, "Authorization Violation"), (other, "certificate verify failed")):
            with pytest.raises(FleetError, match=said):
                async with Engine.connect((fleet.server.url,), "h1", Credentials(ca=str(authority), seed=str(tmp_path / "seed"))):
                    pass

    in_fleet(scenario, more=secured(certificate, key, tmp_path / "users.conf"))


def test_each_may_do_its_part_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    certificate, key = make_certificate(tmp_path)
    users, arch = tmp_path / "users.conf", platform.machine()
    for name, kind in (("g1", "gateway"), ("h1", "host"), ("h2", "host")):
        (tmp_path / f"{name}.seed").write_bytes(tokens.create(users, name, kind, arch if kind == "host" else ""))

    def credentials(name: str) -> Credentials:
        return Credentials(ca=str(certificate), seed=str(tmp_path / f"{name}.seed"))

    async def scenario(fleet: Fleet) -> None:
        fleet.credentials = credentials
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            assert (await run(way.client, "echo safe"))["steps"][1]["stdout"] == "safe\n"
            run_id = await start(way.client, "echo begun; read line; echo $line", interactive=True)
            await until_output(way, run_id, "begun")
            async with Engine.connect((fleet.server.url,), "h2", credentials("h2")) as h2:
                heard: list[Message] = []
                for subject in ("gw.>", "host.h1.*", "begin.*.*", "beat.*", f"_INBOX_h1.pull.{'*'}", f"run.now.{arch}.*"):
                    await h2.listen(subject, heard.append)
                monkeypatch.delattr(Engine, "put")  # nor is it needed
                assert (await run(way.client, "echo handed"))["steps"][1]["stdout"] == "handed\n"
                forged = encode(Settle(token="guessed", delivered=9))
                mine = f"run.{arch}.toy-1_0.x", f"settle.g1.h1.{run_id}", f"begin.h1.{run_id}", "$KV.results.x", "beat.h1"
                asked = await asyncio.gather(*(h2.ask(subject, forged, 1) for subject in (*mine, *OF_OTHERS)), return_exceptions=True)
                assert all(isinstance(each, SilenceError | NobodyError) for each in asked), asked
                sent, send = list[str](), Engine.send

                async def record(self: Engine, subject: str, data: bytes) -> None:
                    sent.append(subject)
                    await send(self, subject, data)

                monkeypatch.setattr(Engine, "send", record)
                begins, asks = encode(Begin(token="guessed", delivered=1)), encode(Ask(arch=arch))
                for subject in ("begin.h2.x", "fn.begin.h2.x", "fn.seek.h2.x", "seek.h2.x", "offers.h2"):
                    for place in NOT_ITS_OWN:  # where an answer would be stored, or be taken for work
                        await h2._client.publish(subject, asks if subject == "offers.h2" else begins, reply=place)
                await until(lambda: sent.count("") == 5 * len(NOT_ITS_OWN))
                assert not {*NOT_ITS_OWN} & {*sent}
                answer = await h2.ask(f"settle.g1.h2.{run_id}", forged)
                assert decode(answer, type=Verdict).verdict == "done"  # it has nothing to do with that run
                async with way.client.post(f"/runs/{run_id}/stdin?eof=true", data=b"mine\n"):
                    pass
                assert output(await events(way.client, run_id)) == "begun\nmine\n"
                assert heard == []
            async with Engine.connect((fleet.server.url,), "h1", credentials("h1")) as again:
                assert await again.ask("ping.h1", b"") == b"", "a second one of its name finds the first"
            async with Engine.connect((fleet.server.url,), "g1", credentials("g1")) as again:
                assert await again.ask("ping.g1", b"") == b""
            tokens.revoke(users, "h2")
            fleet.server.reload()
            async with asyncio.timeout(30):
                while True:  # until the servers have read it
                    try:
                        async with Engine.connect((fleet.server.url,), "h2", credentials("h2")):
                            await asyncio.sleep(0.1)
                    except FleetError:
                        break
            assert (await run(way.client, "echo on"))["status"] == "ok"

    in_fleet(scenario, more=secured(certificate, key, users))


def manifests() -> list[Any]:
    return list(yaml.safe_load_all((ROOT / "examples/fleet/kubernetes.yaml").read_text()))


def test_no_two_members_have_one_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            for name in ("g1", "h1"):
                with pytest.raises(FleetError, match=f"called '{name}' already"):
                    async with fleet.gateway(name, socket=fleet.folder / "other" / "api.sock"):
                        pass
                with pytest.raises(FleetError, match=f"called '{name}' already"):
                    await Fleet(fleet.server, fleet.folder).add_host(name)
            assert (await run(way.client, "echo on"))["status"] == "ok"
        async with fleet.gateway("g1") as way:
            assert (await run(way.client, "echo on"))["status"] == "ok"

    in_fleet(scenario)


def test_a_host_of_the_manifests_is_drained_before_it_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the command that is there, with its own token, though one server is away."""
    install_toys(monkeypatch, tmp_path)
    certificate, key = make_certificate(tmp_path)
    (tmp_path / "ca.pem").write_bytes(certificate.read_bytes())
    for name, kind in (("g1", "gateway"), ("h1", "host")):
        (tmp_path / f"{name}.seed").write_bytes(tokens.create(tmp_path / "users.conf", name, kind, platform.machine()))
    pod = manifests()[-1]["spec"]["template"]["spec"]
    host = pod["containers"][0]
    shell, flag, text = host["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("sh", "-c")
    assert "operator" not in text
    words = shlex.split(
        text.replace("$NODE_NAME", "h1").replace("/etc/mayfly/host.seed", f"{tmp_path}/h1.seed").replace("/etc/mayfly", str(tmp_path))
    )
    waits_s = float(words[words.index("--wait") + 1])
    given = shlex.split(host["args"][0])
    assert waits_s + float(given[given.index("--drain-s") + 1]) < pod["terminationGracePeriodSeconds"]

    async def scenario(fleet: Fleet) -> None:
        fleet.credentials = lambda name: Credentials(ca=str(certificate), seed=str(tmp_path / f"{name}.seed"))
        service = await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            run_id = await start(way.client, "echo begun; sleep 1; echo end")
            await until_output(way, run_id, "begun")
            servers = [place + 1 for place, word in enumerate(words) if word == "--fleet"]
            for place, url in zip(servers, ("tls://127.0.0.1:1", fleet.server.url, fleet.server.url), strict=True):
                words[place] = url
            done = await asyncio.to_thread(CliRunner().invoke, cli, words[1:])
            assert done.exit_code == 0, done.output
            assert not service.under_way
            assert output(await events(way.client, run_id)) == "begun\nend\n"
            assert [host.beat.draining for host in way.runner.roll if host.beat] == [True]

    in_fleet(scenario, more=secured(certificate, key, tmp_path / "users.conf"))


def test_the_manifests_fit_kubernetes() -> None:
    """Its schemas, in which no other fields are allowed than those that it knows."""
    schema = json.loads((ROOT / "tests/kit/kubernetes.schema.json").read_text())

    def check(document: dict[str, Any]) -> None:
        group = "apps" if document["apiVersion"] == "apps/v1" else "core"
        name = f"io.k8s.api.{group}.v1.{document['kind']}"
        jsonschema_rs.validate({**schema, "$ref": f"#/$defs/{name}"}, document)

    documents = manifests()
    for document in documents:
        check(document)
    documents[-1]["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["prestop"] = {}
    with pytest.raises(jsonschema_rs.ValidationError, match="prestop"):
        check(documents[-1])


def test_a_host_has_no_secret_but_its_own() -> None:
    """Who breaks out of its pod has what its node has: the token of one host."""
    host = manifests()[-1]["spec"]["template"]["spec"]
    assert [volume["hostPath"]["path"] for volume in host["volumes"]] == ["/dev/kvm", "/etc/mayfly"]


def test_the_manifests_name_options_that_there_are() -> None:
    documents = manifests()
    assert [one["kind"] for one in documents] == ["ConfigMap", "Service", "StatefulSet", "StatefulSet", "Service", "DaemonSet"]
    texts = [(ROOT / "examples/fleet" / name).read_text() for name in ("kubernetes.yaml", "hosts.nomad.hcl")]
    flags = [flag for command in (serve, gateway, drain) for flag in command.get_params(click.Context(command))]
    known = {option for flag in flags for option in flag.opts}
    assert set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", "".join(texts))) <= known
