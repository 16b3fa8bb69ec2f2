"""Run snippets on a Mayfly server from Python.

    from mayfly.client import Client

    with Client() as mayfly:
        result = mayfly.run('fn main() { println!("hello"); }', language="rust")
        print(result.status, result.stdout)

`AsyncClient` is the same for asyncio. Errors that a server answers are those of `mayfly.errors`.
"""

from mayfly.client.asynchronous import AsyncAttachment, AsyncClient, AsyncRun
from mayfly.client.blocking import Attachment, BlockingRun, Client
from mayfly.client.results import (
    AttemptEvent,
    CaseEvent,
    CaseOutput,
    CasesOutput,
    DoneEvent,
    ErrorEvent,
    ExitEvent,
    FunctionInfo,
    FunctionList,
    FunctionResult,
    FunctionStatistics,
    LanguageInfo,
    RestoredEvent,
    Result,
    RunClientEvent,
    RunFailedError,
    StageEvent,
    StderrEvent,
    StdoutEvent,
    StepOutput,
)
from mayfly.client.submission import CaseInput, LimitsInput, RunOptions, TerminalSize

__all__ = [
    "AsyncAttachment",
    "AsyncClient",
    "AsyncRun",
    "Attachment",
    "AttemptEvent",
    "BlockingRun",
    "CaseEvent",
    "CaseInput",
    "CaseOutput",
    "CasesOutput",
    "Client",
    "DoneEvent",
    "ErrorEvent",
    "ExitEvent",
    "FunctionInfo",
    "FunctionList",
    "FunctionResult",
    "FunctionStatistics",
    "LanguageInfo",
    "LimitsInput",
    "RestoredEvent",
    "Result",
    "RunClientEvent",
    "RunFailedError",
    "RunOptions",
    "StageEvent",
    "StderrEvent",
    "StdoutEvent",
    "StepOutput",
    "TerminalSize",
]
