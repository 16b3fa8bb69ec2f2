"""Run Python's tests and put out how each went, as lines of mayfly/runs/tested.py.

With pytest where the image has it, else with unittest, which also takes plain functions test_*;
what only pytest would run is an error. A file without either that asserts something as it is loaded
or as a program, or has doctest do so, is a test itself. Arguments: names of files that are removed
once the tests are loaded, then `--`, then words of which a test's name must have one.
"""

import ast
import contextlib
import functools
import glob
import importlib
import importlib.util
import inspect
import io
import json
import linecache
import os
import re
import runpy
import sys
import textwrap
import time
import traceback
import unittest
from typing import Any

OUT = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
MAX_OUTPUT = 64 * 1024
OUTCOMES: set[str] = set()
"""Those of tests that have ended."""
LACKS = "takes pytest; add it: imagegen build python --package pytest"
PLUGINS = {
    "--asyncio-mode": "pytest-asyncio",
    "--benchmark": "pytest-benchmark",
    "--cov": "pytest-cov",
    "--html": "pytest-html",
    "--json-report": "pytest-json-report",
    "--numprocesses": "pytest-xdist",
    "--reruns": "pytest-rerunfailures",
    "--timeout": "pytest-timeout",
    "-n": "pytest-xdist",
}
"""By the options that configurations name most, those of pytest's plugins that have them."""
WORDS = {
    "async def function": "pytest-asyncio",
    "fixture 'benchmark' not found": "pytest-benchmark",
    "fixture 'mocker' not found": "pytest-mock",
}
"""Those that would not have said so."""


def put(**fields: Any) -> None:
    OUT.write("\x1e" + json.dumps(fields) + "\n")
    OUT.flush()


def ended(name: Any, outcome: Any, seconds: Any, message: Any = "", output: Any = "") -> None:
    OUTCOMES.add(outcome)
    put(name=name, outcome=outcome, message=message, wall_ms=round(seconds * 1000, 3), output=output[:MAX_OUTPUT])


def called(function: Any) -> Any:
    """What a test's function gives back; a coroutine or a generator has not run."""
    value = function()
    if inspect.iscoroutine(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
        getattr(value, "close", lambda: None)()
        raise TypeError(f"{function.__name__} gave back a {type(value).__name__}, which has not run: it {LACKS}")
    return value


def why(error: Any) -> Any:
    """An exception in words; of an assertion that has none, its line."""
    said = "".join(traceback.format_exception_only(type(error), error)).strip()
    if isinstance(error, AssertionError) and not error.args and error.__traceback__ is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{said}: {frame.line}" if frame.line else said
    return said


def kept(outcome: Any) -> bool:
    """Whether a worse outcome may not replace this one."""
    return outcome not in ("passed", "skipped")


def tell_lacking(module: Any) -> None:
    """Say how a module comes into an image, unless the snippet has one of the name."""
    name = str(module).partition(".")[0]
    if name == "pytest" or not any(os.path.exists(path) for path in (name, name + ".py", "src/" + name)):
        add(name)


def add(package: Any) -> None:
    print(f"the image has no {package}; add it: imagegen build python --package {package}", file=sys.stderr)


def remove(hidden: Any) -> None:
    for path in hidden:
        linecache.getlines(path)  # for what a failure shows
        with contextlib.suppress(OSError):
            os.unlink(path)


def find_modules_of(path: Any) -> None:
    """Let a test import what lies beside it, and what is in `src`, as if that were installed."""
    folder = os.path.dirname(path)
    if folder and not os.path.exists(os.path.join(folder, "__init__.py")):
        sys.path.insert(1, os.path.abspath(folder))
    if os.path.isdir("src") and not os.path.exists("src/__init__.py"):
        sys.path.insert(1, os.path.abspath("src"))


def asserts(path: Any) -> Any:
    """Whether a file asserts something, itself or in a function that it calls: `loaded` if as it is
    loaded, `main` if as a program, or has doctest do so.
    """
    functions: dict[str, Any] = {}
    called: dict[str, set[str]] = {"loaded": set(), "main": set()}
    found = set()

    def walk(node: Any, when: Any) -> Any:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = any(isinstance(inner, ast.Assert) for inner in ast.walk(node))
        elif isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
            when = "main"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            return
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "")
            called[when].add(name)
            if "testmod" in (name, getattr(node.func, "attr", "")):
                found.add("main")
        if isinstance(node, ast.Assert):
            found.add(when)
        for inner in ast.iter_child_nodes(node):
            walk(inner, when)

    try:
        with open(path, "rb") as file:
            walk(ast.parse(file.read()), "loaded")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a test for whoever loads it
        return ""
    for when, names in called.items():
        if any(functions.get(name) for name in names):
            found.add(when)
    return "loaded" if "loaded" in found else "main" if found else ""


def test_alone(path: Any, when: Any) -> None:
    """Tell of a file that asserts something, is loaded and has no tests."""
    if when == "loaded":
        ended(path, "passed", 0)
        return
    doctest: Any = importlib.import_module("doctest")  # only here: it takes its time
    original = doctest.testmod

    def testmod(*words: Any, **named: Any) -> Any:
        """doctest's, which only prints what has failed."""
        found = original(*words, **named)
        if found.failed:
            raise AssertionError(f"{found.failed} of {found.attempted} examples failed")
        return found

    doctest.testmod = testmod
    began = time.perf_counter()
    put(name=path)
    outcome, message = "passed", ""
    capture = Capture()
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as exit:
        if exit.code not in (None, 0):
            outcome, message = "failed", why(exit)
    except BaseException as error:  # a program may do anything
        outcome, message = "failed" if isinstance(error, AssertionError) else "error", why(error)
    doctest.testmod = original
    ended(path, outcome, time.perf_counter() - began, message, capture.end())


class Capture:
    """Holds what is put out, by programs that are started too, until its end."""

    def __init__(self) -> None:
        self._file = os.memfd_create("output")
        self._streams = sys.stdout, sys.stderr
        self._places = os.dup(1), os.dup(2)
        for number in (1, 2):
            os.dup2(self._file, number)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", "replace", write_through=True) for number in (1, 2)
        )

    def end(self) -> Any:
        sys.stdout, sys.stderr = self._streams
        for number in (1, 2):
            os.dup2(self._places[number - 1], number)
            os.close(self._places[number - 1])
        said = os.pread(self._file, MAX_OUTPUT, 0)
        os.close(self._file)
        return said.decode("utf-8", "replace")


def test_files() -> Any:
    found: list[str] = []
    for folder, folders, names in os.walk("."):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            stem, dot = os.path.splitext(name)
            if dot == ".py" and (stem.startswith("test_") or stem.endswith(("_test", "_tests")) or stem in ("test", "tests")):
                found.append(os.path.normpath(os.path.join(folder, name)))
    return found or sorted(name for name in os.listdir(".") if name.endswith(".py"))


class Result(unittest.TestResult):
    """Tells of each test when it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = False
        self._state = ("passed", "")
        self._capture: Any = None
        self._began = 0.0

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self._state = ("passed", "")
        put(name=name_of(test))
        self._capture = Capture()
        self._began = time.perf_counter()

    def stopTest(self, test: Any) -> None:
        seconds = time.perf_counter() - self._began
        output = self._capture.end()
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):  # the one that unittest lets through
            self._note("error", sys.exc_info())
        outcome, message = self._state
        ended(name_of(test), outcome, seconds, message, output)
        super().stopTest(test)

    def _note(self, outcome: Any, error: Any) -> None:
        if not kept(self._state[0]):
            self._state = (outcome, why(error[1]))

    def addFailure(self, test: Any, err: Any) -> None:
        self._note("failed", err)

    def addError(self, test: Any, err: Any) -> None:
        if isinstance(test, unittest.TestCase):
            self._note("error", err)
        else:  # of a class or a module
            ended(str(test), "error", 0, why(err[1]))

    def addSkip(self, test: Any, reason: Any) -> None:
        if not isinstance(test, unittest.TestCase):  # of a class or a module
            ended(str(test), "skipped", 0, reason)
        elif self._state[0] == "passed" and not hasattr(test, "_subDescription"):
            self._state = ("skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._state = ("passed", "failed as expected")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._state = ("failed", "passed, but was expected to fail")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None and not kept(self._state[0]):
            self._note("failed" if issubclass(err[0], test.failureException) else "error", err)
            outcome, message = self._state
            self._state = (outcome, subtest._subDescription() + " " + message)


def name_of(test: Any) -> Any:
    function = getattr(test, "_testFunc", None)  # of a FunctionTestCase
    if function is not None:
        return function.__module__ + "." + function.__name__
    return test.id()


def load(path: Any) -> Any:
    """The tests of a file, under the name by which others import it."""
    name = os.path.splitext(path)[0].replace(os.sep, ".")
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    for key, value in vars(module).items():
        if key.startswith("test") and inspect.isfunction(value):
            parameters = inspect.signature(value, follow_wrapped=False).parameters.values()
            if any(one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters):
                ended(name + "." + key, "error", 0, f"it has parameters: it {LACKS}")
            else:
                suite.addTest(unittest.FunctionTestCase(functools.wraps(value)(functools.partial(called, value))))
        elif key.startswith("Test") and inspect.isclass(value) and not issubclass(value, unittest.TestCase):
            methods = [word for word, _ in inspect.getmembers(value, inspect.isroutine) if word.startswith("test")]
            if methods and value.__init__ is object.__init__:
                ended(name + "." + key, "error", 0, f"a class that is no unittest.TestCase {LACKS}")
    return suite


def flat(suite: Any) -> Any:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def with_unittest(hidden: Any, words: Any) -> Any:
    tests: list[Any] = []
    for path in test_files():
        try:
            alone = asserts(path)
            find_modules_of(path)
            found = list(flat(load(path)))
            tests += found
            if alone and not found:
                test_alone(path, alone)
        except unittest.SkipTest as skip:
            ended(path, "skipped", 0, str(skip))
        except BaseException as error:  # a test's module may do anything
            frames = error.__traceback__
            while frames is not None and os.path.abspath(frames.tb_frame.f_code.co_filename) != os.path.abspath(path):
                frames = frames.tb_next
            traceback.print_exception(type(error), error, frames)
            if isinstance(error, ModuleNotFoundError):
                tell_lacking(error.name)
            outcome = "failed" if isinstance(error, AssertionError) else "error"
            ended(path, outcome, 0, why(error))
    remove(hidden)
    chosen = [test for test in tests if not words or any(word in name_of(test) for word in words)]
    unittest.TestSuite(chosen).run(Result())
    return 0


def tell_plugins() -> None:
    """Say how plugins of pytest come into an image whose options a configuration names, and what a
    conftest.py imports.
    """
    lacking: set[str] = set()
    for path in ("pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            words = re.findall(r"(?<![\w-])--?[a-z]+(?:-[a-z]+)*", file.read())
            lacking.update(
                plugin for option, plugin in PLUGINS.items() for word in words if word == option or word.startswith(option + "-")
            )
    for path in ("conftest.py", "test/conftest.py", "tests/conftest.py"):
        with contextlib.suppress(OSError, SyntaxError, ValueError), open(path, "rb") as file:
            for node in ast.walk(ast.parse(file.read())):
                names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
                for name in names:
                    if importlib.util.find_spec(name.partition(".")[0]) is None:
                        tell_lacking(name)
    for plugin in sorted(lacking):
        add(plugin)


def with_pytest(pytest: Any, hidden: Any, words: Any) -> Any:
    class Plugin:
        """Tells of each test when it has ended."""

        def __init__(self) -> None:
            self.open: dict[str, list[Any]] = {}
            self.lacking: set[str] = set()

        def pytest_configure(self, config: Any) -> None:
            """Where a configuration says which files are tests, pytest looks for them."""
            paths = [path for place in config.getini("testpaths") for path in sorted(glob.glob(str(place), recursive=True))]
            if paths or config.getini("python_files") != ["test_*.py", "*_test.py"]:
                config.args = paths or ["."]

        def collecting(self, collector: Any) -> Any:
            """A file that ends the program as it is loaded ends its own collection alone."""
            collect = collector.collect

            def collected() -> Any:
                try:
                    return list(collect())
                except SystemExit as exit:
                    raise collector.CollectError(f"SystemExit: {exit.code}") from exit

            collector.collect = collected
            yield

        pytest_make_collect_report = pytest.hookimpl(hookwrapper=True)(collecting)

        def pytest_collection_finish(self) -> None:
            remove(hidden)

        def pytest_collectreport(self, report: Any) -> None:
            if report.passed and not report.result and alone.get(report.nodeid):
                test_alone(report.nodeid, alone[report.nodeid])
            if report.failed:
                asserted = re.search(r"^E +(assert |AssertionError)", report.longreprtext, re.MULTILINE)
                for module in re.findall(r"^E +ModuleNotFoundError: No module named '(.*)'$", report.longreprtext, re.MULTILINE):
                    tell_lacking(module)
                ended(report.nodeid or "collection", "failed" if asserted else "error", 0, said(report.longreprtext))
            elif report.skipped:
                ended(report.nodeid, "skipped", 0, report.longrepr[2])

        def pytest_runtest_logstart(self, nodeid: Any) -> None:
            put(name=nodeid)
            self.open[nodeid] = ["passed", "", 0.0]

        def pytest_runtest_logreport(self, report: Any) -> None:
            state = self.open[report.nodeid]
            state[2] += report.duration
            if report.failed and not kept(state[0]):
                crash = getattr(report.longrepr, "reprcrash", None)
                message = crash.message if crash else said(report.longreprtext)
                state[:2] = ["failed" if report.when == "call" else "error", message]
            elif report.skipped and state[0] == "passed":
                reason = (
                    report.longrepr[2] if isinstance(report.longrepr, tuple) else re.sub(r"\Areason: ", "", getattr(report, "wasxfail", ""))
                )
                state[:2] = ["skipped", reason]
            if report.when == "teardown":
                self.lacking.update(plugin for words, plugin in WORDS.items() if words in state[1])
                output = report.capstdout + report.capstderr
                ended(report.nodeid, state[0], state[2], state[1], output)

    def said(text: Any) -> Any:
        """The error that pytest shows behind each E, or else what a file's examples expected."""
        lines = textwrap.dedent("\n".join(line[1:] for line in text.splitlines() if re.match("E {3}", line))).split("\n")
        while lines and lines[0].startswith(" "):
            del lines[0]
        shown = text.partition("\nExpected:\n")[2].rpartition("\n\n")[0] if text.endswith(": DocTestFailure") else ""
        return "\n".join(lines).strip() or (f"Expected:\n{shown}" if shown else text.strip())

    select = ["-k", " or ".join(words)] if words else []
    options = ["-o", "cache_dir=/tmp/pytest", "--capture=fd", "--rootdir=."]  # behind those of the project's own configuration
    files = test_files()
    alone = {path: asserts(path) for path in files}
    for path in files:
        find_modules_of(path)
    plugin = Plugin()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # what it says besides
        try:
            status = pytest.main([*options, *select, *files], plugins=[plugin])
        except SystemExit as exit:  # of a conftest.py
            print(f"conftest.py ended the program: {exit.code}", file=sys.stderr)
            status = 1
    for name in sorted(plugin.lacking):
        add(name)
    if status == 4:
        tell_plugins()
    return 0 if status == 5 else status


def main() -> Any:
    at = sys.argv.index("--")
    hidden, words = sys.argv[1:at], sys.argv[at + 1 :]
    sys.dont_write_bytecode = True
    sys.path[0] = os.getcwd()
    case: Any = unittest.TestCase
    case._callTestMethod = lambda _, method: called(method)
    module: Any = unittest
    module.main = lambda *_, **__: None  # files call it that are programs too
    try:
        pytest: Any = importlib.import_module("pytest")
    except ImportError:
        pytest = None
    status = with_pytest(pytest, hidden, words) if pytest else with_unittest(hidden, words)
    if not OUTCOMES and not status:
        print("there are no tests: they are in files test_*.py and *_test.py", file=sys.stderr)
    return 0 if OUTCOMES and not status and not any(map(kept, OUTCOMES)) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.exit(status)
