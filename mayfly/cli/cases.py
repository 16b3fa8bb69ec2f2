"""`mayfly run --cases`: cases from a file or a folder, and a line for each."""

from pathlib import Path

from mayfly.errors import HostError, MayflyError, RequestError, SchemaError
from mayfly.guests.outcome import signal_name
from mayfly.host.snippet import MAX_CASES, Case, Compare
from mayfly.protocol.frames import ExitHow
from mayfly.runs.cases import CaseResult, Cases, CaseVerdict

SHOWN = 40
"""Characters of a line of output that are shown."""


def read_cases(path: Path) -> tuple[Case, ...]:
    """The cases in a file of JSON (a list, as `cases` of a request), or of a folder in which each
    NAME.in has its expected output in NAME.out.

    Raises:
        MayflyError: there are none, or they cannot be read.
    """
    try:
        cases = _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        raise HostError(f"{error.filename}: cannot be read: {error.strerror}", hint="give a file of JSON, or a folder") from error
    if not 1 <= len(cases) <= MAX_CASES:
        raise RequestError(f"{path} has {len(cases)} cases; a run has 1 to {MAX_CASES}", hint="a folder has NAME.in and NAME.out for each")
    return cases


def _of_folder(folder: Path) -> tuple[Case, ...]:
    return tuple(
        Case(
            name=path.stem,
            stdin=path.read_bytes(),
            expected_stdout=out.read_bytes() if (out := path.with_suffix(".out")).exists() else None,
        )
        for path in sorted(folder.glob("*.in"))
    )


def _of_file(path: Path) -> tuple[Case, ...]:
    from mayfly.api.requests import CaseBody, make_case  # only here: other runs start sooner
    from mayfly.schema import decode

    try:
        return tuple(map(make_case, decode(tuple[CaseBody, ...], path.read_bytes())))
    except SchemaError as error:
        raise RequestError(f"{path}: {error.message}", hint=error.hint or "it is a list, as `cases` in docs/cases.md") from error


def line(result: CaseResult, cases: Cases) -> str:
    """What is said of a case."""
    name = result.name or f"case {result.index + 1}"
    times = f"{result.step.exit.wall_us / 1000:9.1f} ms {result.step.exit.peak_memory / (1 << 20):7.1f} MiB" if result.step else " " * 25
    return f"{result.verdict.replace('_', ' '):12} {times}  {name}{_why(result, cases.all[result.index])}"


def _why(result: CaseResult, case: Case) -> str:
    match result.verdict:
        case CaseVerdict.WRONG_ANSWER:
            return f": {_first_difference(case.expected_stdout or b'', result.stdout, case.compare)}"
        case CaseVerdict.ERROR:
            return f": {result.error.message}" if isinstance(result.error, MayflyError) else ""
    if result.step is None:
        return ""
    ended = result.step.exit
    if result.verdict is CaseVerdict.LIMIT:
        return f": its {ended.limit.name.lower().replace('_', ' ')} limit"
    if result.verdict is CaseVerdict.SIGNAL:
        return f": {signal_name(ended.code)}"
    return f": exit code {ended.code}" if ended.how is ExitHow.EXITED and ended.code else ""


def _first_difference(expected: bytes, found: bytes, how: Compare) -> str:
    def pieces(text: bytes) -> list[bytes]:
        return (
            text.split()
            if how is Compare.TOKENS
            else text.splitlines()
            if how is Compare.EXACT
            else [*map(bytes.rstrip, text.splitlines())]
        )

    what = "token" if how is Compare.TOKENS else "line"
    wanted, got = pieces(expected), pieces(found)
    for number, (one, other) in enumerate(zip(wanted, got, strict=False), 1):
        if one != other:
            return f"{what} {number} is {_shown(other)}, not {_shown(one)}"
    if len(got) < len(wanted):
        return f"{what} {len(got) + 1} is missing: {_shown(wanted[len(got)])}"
    if len(got) > len(wanted):
        return f"{what} {len(wanted) + 1} is too many: {_shown(got[len(wanted)])}"
    return "it differs in white space, or was cut"


def _shown(piece: bytes) -> str:
    text = repr(piece.decode(errors="replace"))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def summary(cases: Cases) -> str:
    """The line behind all of them."""
    passed = sum(result.verdict is CaseVerdict.PASSED for result in cases.results)
    guests = f", on {cases.parallel} guests" if cases.parallel > 1 else ""
    return f"{passed} of {len(cases.all)} cases passed{guests}"
