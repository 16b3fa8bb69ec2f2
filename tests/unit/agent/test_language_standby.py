"""What stands by for a language does what its steps' programs do, by this host's compilers."""

import dataclasses
import re
from collections.abc import Mapping

import msgspec
import pytest

from mayfly.imagegen.languages import load_language
from mayfly.protocol import frames as p
from tests.kit.agent_process import AgentProcess, Result
from tests.kit.agent_process import executable as executable
from tests.kit.scale import FULL
from tests.unit.agent.test_language_steps import WITH_MAIN, needs_java, steps_here
from tests.unit.agent.test_language_steps import agent as agent

MAIN = "public static void main(String[] args) {"
JAVA: dict[str, dict[str, str]] = {
    "an error": {"Main.java": "class Main { int x = true; }"},
    **WITH_MAIN,
    "an error in what was renamed": {"Main.java": "/**/ public class Right { int x = true; }", "Other.java": "public class Third {}"},
    "a warning": {"Main.java": f"class Main {{ {MAIN} System.out.println(1); new Thread().stop(); }} }}"},
    "no class": {"Main.java": ""},
    "no main": {"Main.java": "class Main { int x = 1; }"},
    "no folder": {"Main.java": f"class Main {{ {MAIN} }} }}", ".mayfly/classes": ""},
}
LANGUAGES = {"java": JAVA}


def result_of(agent: AgentProcess, steps: list[p.Step], files: Mapping[str, str], run: int) -> Result:
    agent.start(*steps, files=[(path, text.encode()) for path, text in files.items()], run=run)
    agent.send(p.Stdin(b"some\ninput\n"), p.StdinEof(), run=run)
    return agent.result()


def comparable(output: bytes) -> bytes:
    """Without process ids."""
    return re.sub(rb"\(node:\d+\)", b"", output)


@pytest.mark.parametrize("name", [pytest.param("java", marks=needs_java)])
def test_what_stood_by_does_what_the_steps_program_does(agent: AgentProcess, name: str) -> None:
    language = load_language(name)
    steps = [
        dataclasses.replace(step, argv=(*step.argv, "a", "-b", "")) if step.stdin else step
        for step in steps_here(agent, language, language.steps)
    ]
    (index,) = (number for number, step in enumerate(language.steps) if step.standby)
    (standby,) = steps_here(agent, language, [msgspec.structs.replace(language.steps[index], argv=language.steps[index].standby)])
    # Whoever would start the step's own program would find none.
    by_standby = [*steps]
    by_standby[index] = dataclasses.replace(steps[index], argv=("not there", *steps[index].argv[1:]), by_standby=True)
    for number, files in enumerate([*LANGUAGES[name].values()][: None if FULL else 2], start=1):
        usual = result_of(agent, steps, files, 3 * number)
        agent.start(dataclasses.replace(standby, standby=True), run=3 * number + 1)
        ready = agent.result()
        assert (ready.exit.code, ready.stdout, ready.stderr) == (0, b"", b"")
        result = result_of(agent, by_standby, files, 3 * number + 2)
        assert result.stages == usual.stages
        assert comparable(result.stdout) == comparable(usual.stdout)
        assert comparable(result.stderr) == comparable(usual.stderr)
        assert [exit.code for exit in result.exits] == [exit.code for exit in usual.exits]
