"""The steps of TypeScript's file, run by the agent with this host's Node and esbuild."""

import pytest

from tests.kit.agent_process import AgentProcess
from tests.unit.agent.test_language_steps import HELLO_STDIN, agent, executable, needs_esbuild, run, with_esbuild

__all__ = ["agent", "executable", "with_esbuild"]


@needs_esbuild
@pytest.mark.usefixtures("with_esbuild")
def test_typescript_is_built_and_run(agent: AgentProcess) -> None:
    result = run(agent, "typescript", HELLO_STDIN["typescript"], b"world\n")
    assert (result.stages, result.stdout, result.exits[-1].code) == (["build", "run"], b"hello world\n", 3), result.stderr


@needs_esbuild
@pytest.mark.usefixtures("with_esbuild")
def test_typescript_imports_enums_and_waiting(agent: AgentProcess) -> None:
    files = {
        "main.ts": 'import { Kind } from "./kind";\n'
        'console.log(Kind[await Promise.resolve(Kind.Two)], (await import("node:os")).EOL.length);\n',
        "kind.ts": "export enum Kind { One, Two }\n",
    }
    result = run(agent, "typescript", files)
    assert (result.stdout, result.stderr) == (b"Two 1\n", b"")


@needs_esbuild
@pytest.mark.usefixtures("with_esbuild")
def test_an_error_of_typescript_is_a_failed_build_and_types_are_not_checked(agent: AgentProcess) -> None:
    result = run(agent, "typescript", {"main.ts": "const x: number = ;"})
    assert (result.stages, result.exit.code) == (["build"], 1)
    assert b'[ERROR] Unexpected ";"' in result.stderr
    assert b"main.ts:1:18:" in result.stderr
    assert run(agent, "typescript", {"main.ts": 'const x: number = "text"; console.log(x);'}).stdout == b"text\n"
    assert b"there is no main.ts" in run(agent, "typescript", {"other.ts": ""}).stderr
    files = {
        "src/index.ts": "import { one } from './one';\nconsole.log(one, __dirname.slice(-8));\n",
        "src/one.ts": "export const one = 1;\n",
    }
    assert run(agent, "typescript", files).stdout == b"1 work/src\n"


@needs_esbuild
@pytest.mark.usefixtures("with_esbuild")
def test_typescript_has_elements_and_waits_beside_require(agent: AgentProcess) -> None:
    source = "const React = { createElement: (...all: unknown[]) => all };\nconsole.log(...(<b>x</b> as unknown[]));\n"
    assert run(agent, "typescript", {"main.tsx": source}).stdout == b"b null x\n"
    plain = source.replace(": unknown[]", "").replace("(<b>x</b> as unknown[])", "<b>x</b>")
    assert run(agent, "typescript", {"main.jsx": plain}).stdout == b"b null x\n"
    source = "const two: number = await Promise.resolve(2);\nconst path = require('path');\nconsole.log(path.sep, two);\n"
    assert run(agent, "typescript", {"main.ts": source}).stdout == b"/ 2\n"


@needs_esbuild
@pytest.mark.usefixtures("with_esbuild")
@pytest.mark.parametrize("first", ["", "await null;\n"], ids=["CommonJS", "a module"])
def test_typescript_built_in_knows_where_it_is(agent: AgentProcess, first: str) -> None:
    main = "if (require.main === module) console.log('main');\n"
    files = {
        "main.ts": f"import {{ said, url }} from './lib/deep/data';\nimport own from './own';\n{first}{main}"
        "console.log(said(), url, own, import.meta.dirname === __dirname && own === __dirname);\n",
        "lib/deep/data.ts": f"{main}import * as fs from 'fs';\nexport const url = import.meta.url.slice(-16);\n"
        "export const said = () => fs.readFileSync(__dirname + '/said.txt', 'utf8');\n",
        "lib/deep/said.txt": "said",
        "own.ts": "import { dirname } from 'path';\nimport { fileURLToPath } from 'url';\n"
        "const __filename = fileURLToPath(import.meta.url);\nconst __dirname = dirname(__filename);\n"
        "if (process.argv[1] === __filename) console.log('own');\nexport default __dirname;\n",
    }
    result = run(agent, "typescript", files)
    assert result.stdout.decode() == f"main\nsaid lib/deep/data.ts {agent.work} true\n", result.stderr


@needs_esbuild
@pytest.mark.usefixtures("with_esbuild")
def test_an_exception_in_typescript_names_its_line(agent: AgentProcess) -> None:
    source = "interface A {\n  a: number;\n}\nfunction f(a: A) {\n  throw new Error('x');\n}\nf({ a: 1 });\n"
    result = run(agent, "typescript", {"main.ts": source})
    assert (result.stages, result.exits[-1].code) == (["build", "run"], 1)
    assert b"main.ts:5:9" in result.stderr
