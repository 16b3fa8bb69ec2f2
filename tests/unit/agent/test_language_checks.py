"""The languages' own checks, with this host's compilers."""

import shutil

import pytest

from mayfly.imagegen.checks import fault, load_checks
from mayfly.imagegen.languages import load_language
from mayfly.protocol import frames as p
from tests.kit.agent_process import AgentProcess
from tests.kit.scale import FULL
from tests.kit.suites import SUITES
from tests.unit.agent.test_language_steps import agent, executable, go_caches, steps_here, with_esbuild
from tests.unit.agent.test_language_tests import languages

__all__ = ["agent", "executable", "with_esbuild"]


@languages([*SUITES] if FULL else ["c", "javascript", "python"])
@pytest.mark.usefixtures("with_esbuild")
def test_checks(agent: AgentProcess, name: str) -> None:
    language = load_language(name)
    if name == "go":
        go_caches(agent)
    agent.patience_s *= 10  # Go compiles its library
    found = {}
    for number, check in enumerate(load_checks(name), 1):
        *before, last = steps_here(agent, language, language.steps, wall_ms=600_000)
        last.cpu_ms = round(check.limits.get("wall_s", 0) * 1000)  # which does not depend on what else this host does
        agent.start(*before, last, files=[(language.source_file, check.source.encode())], run=number)
        agent.send(p.Stdin(check.stdin.encode()), p.StdinEof(), run=number)
        result = agent.result()
        shutil.rmtree(agent.work.parent / "run" / "cache", ignore_errors=True)  # as an agent in a guest does
        exit = result.exits[-1]
        if exit.limit is p.Limit.CPU:
            exit.limit = p.Limit.WALL
        found[check.name] = fault(check, result.stages[-1], exit, result.stdout, result.stderr)
    assert found == dict.fromkeys(found, "")
    assert {"hello", "standard input", "exit status", "wall limit"} <= set(found)
