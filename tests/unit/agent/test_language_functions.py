"""The examples of functions, loaded by the languages' shims in the real agent with this host's own
compilers.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mayfly.imagegen.languages import load_language, offered
from mayfly.protocol import frames as p
from tests.kit.agent_process import PATH_ENV, AgentProcess, greeted
from tests.kit.agent_process import executable as executable
from tests.kit.function_process import function_of
from tests.unit.agent.test_agent_function import ask
from tests.unit.agent.test_language_steps import version_here

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "functions"
SPECS = {spec["name"]: spec for spec in yaml.safe_load((EXAMPLES / "functions.yaml").read_text())}
COMPILERS = {"go": "go", "rust": "rustc", "python": "python3", "javascript": "node", "java": "javac"}
JSON = "application/json"


@pytest.fixture
def agent(executable: Path) -> Iterator[AgentProcess]:
    """An agent whose steps run as ourselves, who can read this host's compilers."""
    with greeted(executable, uid=os.geteuid()) as process:
        yield process


def load(agent: AgentProcess, language: str, code: Path) -> None:
    """Load a function of the language."""
    function = function_of(language)
    replaced = {"{entry}": function.entry}
    if options := load_language(language).options:
        replaced |= {f"{{{name}}}": found.default for name, found in offered(load_language(language), version_here(language)).items()}
        assert len(replaced) == 1 + len(options)
    env = {**dict(PATH_ENV), "PATH": os.environ["PATH"], "HOME": str(Path.home())}
    steps = [
        p.Step(
            step.name,
            tuple(replaced.get(part, part) for part in step.argv),
            cwd=step.cwd,
            env=tuple({**env, **step.env}.items()),
            output=1 << 20,
            function=step is function.steps[-1],
        )
        for step in function.steps
    ]
    files = [(path, text.encode()) for path, text in function.files.items()]
    if code.is_file():
        files.append((function.source_file, code.read_bytes()))
    else:
        files += [(str(path.relative_to(code)), path.read_bytes()) for path in code.rglob("*") if path.suffix in (".py", ".json")]
    agent.start(*steps, files=files)
    messages = list(agent.until(p.Loaded))
    assert all(message.code == 0 for message in messages if isinstance(message, p.Exit)), messages


def load_example(agent: AgentProcess, name: str) -> None:
    """Load an example as its function file says."""
    spec = SPECS[name]
    if shutil.which(COMPILERS[spec["language"]]) is None:
        pytest.skip(f"{spec['language']} is not installed")
    load(agent, spec["language"], EXAMPLES / spec["code"])


@pytest.mark.parametrize("name", SPECS)
def test_an_example_answers_a_workloads_requests(agent: AgentProcess, name: str) -> None:
    load_example(agent, name)
    for number in (42, 7, 1_234_567):
        response, log = ask(agent, json.dumps({"request": number}).encode(), number=number, content_type=JSON)
        assert (response.id, response.kind) == (number, p.ResponseKind.ANSWER), response.data
        answer = json.loads(response.data)
        assert answer["request"] == number
        assert len(answer) > 1
        assert response.guest_us < 600_000_000
        assert {"hello": b"greeting", "ocr-img": b"drew"}.get(name, b"") in log


def test_hello(agent: AgentProcess) -> None:
    load_example(agent, "hello")
    response, log = ask(agent, b'{"name": "Ada"}', content_type=JSON)
    assert (json.loads(response.data), log) == ({"name": "Ada", "message": "Hello, Ada!"}, b"greeting Ada\n")
    assert json.loads(ask(agent)[0].data) == {"message": "Hello, world!"}


def test_markdown(agent: AgentProcess) -> None:
    load_example(agent, "markdown-to-html")
    text = (
        "# A *title*\n\n"
        "Some **bold** text,\nand `<code>` [here](https://example.com).\n"
        "- one\n- two\n1. three\n\n"
        "> quoted\n```\n<a>\n\n*b*\n```"
    )
    response, _ = ask(agent, text.encode(), content_type="text/markdown")
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.data.decode().splitlines() == [
        "<h1>A <em>title</em></h1>",
        '<p>Some <strong>bold</strong> text, and <code>&lt;code&gt;</code> <a href="https://example.com">here</a>.</p>',
        "<ul><li>one</li><li>two</li></ul>",
        "<ol><li>three</li></ol>",
        "<blockquote>quoted</blockquote>",
        "<pre><code>&lt;a&gt;",
        "",
        "*b*</code></pre>",
    ]


def test_sentiment(agent: AgentProcess) -> None:
    load_example(agent, "sentiment-analysis")
    labels = [json.loads(ask(agent, text, content_type="text/plain")[0].data)["label"] for text in (b"Very good!", b"not good", b"A box.")]
    assert labels == ["positive", "negative", "neutral"]


def test_ocr(agent: AgentProcess) -> None:
    load_example(agent, "ocr-img")
    for number in (0, 9_876_543_210):
        assert json.loads(ask(agent, b'{"request": %d}' % number)[0].data) == {"request": number, "text": str(number)}
    assert json.loads(ask(agent, b"P1\n# nothing\n3 2\n101 010")[0].data) == {"text": ""}
    for payload in (b"", b"P1", b"P1 0 1", b"P1 2 2 111", b"P1 2000 1"):
        assert ask(agent, payload)[0].kind is p.ResponseKind.EXCEPTION
