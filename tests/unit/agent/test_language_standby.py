"""What stands by for a language does what its steps' programs do, by this host's compilers."""

import dataclasses
import re
import shutil
from collections.abc import Mapping

import msgspec
import pytest

from mayfly.imagegen.languages import load_language
from mayfly.protocol import frames as p
from tests.kit.agent_process import AgentProcess, Result
from tests.kit.agent_process import executable as executable
from tests.kit.scale import FULL
from tests.unit.agent.test_language_steps import WITH_MAIN, steps_here
from tests.unit.agent.test_language_steps import agent as agent
from tests.unit.agent.test_language_steps import with_esbuild as with_esbuild

MAIN = "public static void main(String[] args) {"
JAVA: dict[str, dict[str, str]] = {
    "an error": {"Main.java": "class Main { int x = true; }"},
    **WITH_MAIN,
    "an error in what was renamed": {"Main.java": "/**/ public class Right { int x = true; }", "Other.java": "public class Third {}"},
    "a warning": {"Main.java": f"class Main {{ {MAIN} System.out.println(1); new Thread().stop(); }} }}"},
    "no class": {"Main.java": ""},
    "no main": {"Main.java": "class Main { int x = 1; }"},
    "nested": {"Main.java": f"class Main {{ int x = {'(' * 2000}1{')' * 2000}; {MAIN} }} }}"},
    "no folder": {"Main.java": f"class Main {{ {MAIN} }} }}", ".mayfly/classes": ""},
}
ABOUT = """
console.log(process.argv, process.execArgv, __filename, require.main === module, module.id, module.parent, Object.keys(require.cache));
console.log(process.cwd(), process.argv0, process.title, process.env, Object.getOwnPropertyNames(globalThis), module.paths);
console.log(require('fs').readdirSync('/proc/self/fd').length, Math.abs(performance.timeOrigin + performance.now() - Date.now()) < 1000);
const { Worker, isMainThread } = require('worker_threads');
if (isMainThread) new Worker(__filename).on('exit', () => require('child_process').fork('other.js'));
"""
TRACES = """
Error.stackTraceLimit = 100;
console.log(new Error('now').stack);
setTimeout(() => console.log(new Error('later').stack));
process.nextTick(() => console.trace('soon'));
"""
JAVASCRIPT: dict[str, dict[str, str]] = {
    "itself": {"main.js": ABOUT, "other.js": "console.log(process.argv.length, process.execArgv)"},
    "traces": {"main.js": TRACES},
    "an exception": {"main.js": "function f() { throw new Error('x'); }\nf();"},
    "a module": {
        "main.mjs": "import { a } from './lib/a.mjs'; console.log(import.meta.url, a, await 3);",
        "lib/a.mjs": "export const a = 1;",
    },
    "a script by its extension": {"main.cjs": "console.log(__filename, process.argv); process.exitCode = 4;"},
    "a module by its text": {"main.js": "import fs from 'fs'; console.log(fs.readdirSync('.'));"},
    "a module by package.json": {"main.js": "import 'fs'; console.log(import.meta.url);", "package.json": '{"type": "module"}'},
    "a missing package": {"main.js": "", "package.json": '{"dependencies": {"not-there": "1"}}'},
    "an error of syntax": {"main.js": "let x = ;"},
    "no script": {},
    "input": {"main.js": "console.log(require('fs').readFileSync(0, 'utf8'))"},
    "lines": {
        "main.js": "require('readline').createInterface({ input: process.stdin }).on('line', console.log).on('close', () => console.log(1))"
    },
    "a rejection": {"main.js": "Promise.reject(new Error('r'))"},
    "much": {"main.js": "process.stdout.write('x'.repeat(3000000), () => process.exit(3))"},
}
TYPESCRIPT: dict[str, dict[str, str]] = {
    "an exception": {"main.ts": "interface A {\n  a: number;\n}\nfunction f(a: A) {\n  throw new Error('x');\n}\nf({ a: 1 });\n"},
    "a module": {"main.ts": "console.log(process.argv, import.meta.url, await 3);"},
}
LANGUAGES = {"java": JAVA, "javascript": JAVASCRIPT, "typescript": TYPESCRIPT}


NEEDS = {"java": "javac", "javascript": "node", "typescript": "esbuild"}


def result_of(agent: AgentProcess, steps: list[p.Step], files: Mapping[str, str], run: int) -> Result:
    agent.start(*steps, files=[(path, text.encode()) for path, text in files.items()], run=run)
    agent.send(p.Stdin(b"some\ninput\n"), p.StdinEof(), run=run)
    return agent.result()


def comparable(output: bytes) -> bytes:
    """Without process ids."""
    return re.sub(rb"\(node:\d+\)", b"", output)


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.usefixtures("with_esbuild")
def test_what_stood_by_does_what_the_steps_program_does(agent: AgentProcess, name: str) -> None:
    if not shutil.which(NEEDS[name]):
        pytest.skip(f"{NEEDS[name]} is not installed")
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
        assert steps[index].name in usual.stages
        result = result_of(agent, by_standby, files, 3 * number + 2)
        assert result.stages == usual.stages
        assert comparable(result.stdout) == comparable(usual.stdout)
        assert comparable(result.stderr) == comparable(usual.stderr)
        assert [exit.code for exit in result.exits] == [exit.code for exit in usual.exits]
