"""The routes of Judge0 CE 1.13.1."""

import asyncio
import contextlib
import json
import logging
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from mayfly.api.access import caller_of, owner_of
from mayfly.api.compat.dialect import Dialect, Path, parse_object, start, text_of
from mayfly.api.compat.images import is_interpreted
from mayfly.api.compat.judge0 import about
from mayfly.api.compat.judge0.fields import Errors, Fields, parse
from mayfly.api.compat.judge0.languages import languages_of, name_of
from mayfly.api.compat.judge0.snippets import Job, make_job
from mayfly.api.compat.judge0.store import Store
from mayfly.api.compat.judge0.submission import ALL_FIELDS, DEFAULT_FIELDS, Status, Submission
from mayfly.api.intake import BODIES, HOOKS, MESSAGES, SERVICE, find_run, make_call, note
from mayfly.api.requests import MAX_ITEMS
from mayfly.errors import BusyError, MediaTypeError, RequestError, UnknownRunError, UnprocessableError
from mayfly.runs.callbacks import Callback, Delivered, Message
from mayfly.runs.run import Run

log = logging.getLogger(__name__)
PER_PAGE = 20
ROOM_TRIES = 100
"""How often room is asked for, a second apart, for a run of a submission that is not its first."""
NOT_TEXT = "cannot be converted to UTF-8, use base64_encoded=true query parameter"


class Judge0(Dialect):
    """The contract."""

    name = "judge0"
    _store: Store

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._tasks: set[asyncio.Task[None]] = set()

    def paths(self) -> Sequence[Path]:
        """All that it answers."""
        return (
            Path("POST", "/submissions/batch", self._create_batch),
            Path("GET", "/submissions/batch", self._show_batch),
            Path("POST", "/submissions", self._create),
            Path("GET", "/submissions", self._index),
            Path("GET", "/submissions/{token}", self._show),
            Path("DELETE", "/submissions/{token}", self._delete),
            Path("GET", "/languages", self._languages),
            Path("GET", "/languages/all", self._all_languages),
            Path("GET", "/languages/{id}", self._language),
            Path("GET", "/statuses", self._statuses),
            Path("GET", "/about", self._about),
            Path("GET", "/version", self._version),
            Path("GET", "/config_info", self._config_info),
            Path("GET", "/system_info", self._system_info),
            Path("GET", "/statistics", self._statistics),
            Path("GET", "/workers", self._workers),
            Path("POST", "/authenticate", self._authenticate),
            Path("POST", "/authorize", self._authenticate),
        )

    def mount(self, app: web.Application) -> None:
        """Add its routes, and a store of submissions that ends with the application."""
        super().mount(app)
        self._store = Store(app[SERVICE].config)
        app[MESSAGES][self.name] = _message_of
        app.on_cleanup.append(self._close)

    async def _close(self, app: web.Application) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def refuse(self, status: int, problem: Mapping[str, Any]) -> web.Response:
        """An error. A queue that is full is a 503 there."""
        if problem["code"] == "busy":
            return web.json_response({"error": "queue is full"}, status=503)
        if status == 404:
            return web.json_response({"status": 404, "error": "Not Found"}, status=404)
        return web.json_response({"error": text_of(problem)}, status=status)

    async def _create(self, request: web.Request) -> web.Response:
        params = await _params(request)
        names = _field_names(params)
        encoded = params.get("base64_encoded") in (True, "true")
        job = await self._job(request, params, encoded=encoded)
        if isinstance(job, Errors):
            return web.json_response(job, status=422)
        submission, task = await self._begin(request, *job)
        if params.get("wait") not in (True, "true"):
            return web.json_response({"token": submission.token}, status=201)
        try:
            await asyncio.wait([task])
        finally:
            if submission.run is not None:
                await request.app[SERVICE].end(submission.run, "the client went away")
        try:
            return web.json_response(submission.to_json(names, encoded=encoded), status=201)
        except UnicodeDecodeError:
            body = {"error": f"some attributes for this submission {NOT_TEXT}", "token": submission.token}
            return web.json_response(body, status=201)

    async def _job(self, request: web.Request, params: Mapping[str, Any], *, encoded: bool) -> tuple[Fields, Job] | Errors:
        """What a submission asks for, or what is wrong with it."""
        service = request.app[SERVICE]
        fields = parse(params, encoded=encoded, network=about.gives_network(service.config))
        if isinstance(fields, Errors):
            return fields
        if fields.callback_url:
            try:
                request.app[HOOKS].check(Callback(fields.callback_url, secret=""), owner_of(request))
            except UnprocessableError as error:
                return Errors(callback_url=[error.message.removeprefix("callback_url: ")])
        job = await make_job(service, fields)
        return job if isinstance(job, Errors) else (fields, job)

    async def _begin(self, request: web.Request, fields: Fields, job: Job) -> tuple[Submission, "asyncio.Task[None]"]:
        """Start a submission.

        Raises:
            MayflyError: it is refused; nothing has been started.
        """
        named = {"id": fields.language_id, "name": name_of(fields.language_id, job.image)}
        submission = Submission(fields, named, owner_of(request), builds=not is_interpreted(job.image))
        call = b""
        if fields.callback_url and submission.is_one_run:
            call = make_call(request, Callback(fields.callback_url, secret=""), self.name)
        run = await start(request, job.snippet, job.image, call=call, about=submission.about, run_id=submission.id.hex)
        submission.run = run
        self._store.add(submission)
        task = asyncio.create_task(self._carry_out(request, submission, job, run), name=f"submission {submission.token}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return submission, task

    async def _carry_out(self, request: web.Request, submission: Submission, job: Job, run: Run) -> None:
        async def again() -> Run:
            for _ in range(ROOM_TRIES):
                try:
                    return await start(request, job.snippet, job.image)
                except BusyError as error:
                    busy = error
                    await asyncio.sleep(1)
            raise busy

        try:
            await submission.carry_out(run, again)
        except Exception as error:
            log.exception("submission %s", submission.token)
            submission.fail(f"it could not go on: {error}")
        finally:
            submission.fail("it was ended")
            self._store.keep(submission)
        if submission.fields.callback_url and not submission.is_one_run:
            _call_back(request, submission)

    async def _create_batch(self, request: web.Request) -> web.Response:
        params = await _params(request)
        items = params.get("submissions")
        items = items if isinstance(items, list) else []
        _check_batch(len(items))
        encoded = params.get("base64_encoded") in (True, "true")
        jobs = [await self._job(request, item if isinstance(item, dict) else {}, encoded=encoded) for item in items]
        begun: list[Submission] = []
        answers: list[Any] = []
        try:
            for job in jobs:
                if isinstance(job, Errors):
                    answers.append(job)
                    continue
                submission, _ = await self._begin(request, *job)
                begun.append(submission)
                answers.append({"token": submission.token})
        except BaseException:  # all of them or none
            for submission in begun:
                if submission.run is not None:
                    await request.app[SERVICE].forget(submission.run.id)
                self._store.drop(submission)
            raise
        return web.json_response(answers, status=201 if begun else 422)

    async def _show(self, request: web.Request) -> web.Response:
        names = _field_names(request.query)
        submission = await self._find(request, request.match_info["token"])
        if submission is None:
            raise UnknownRunError("there is no such submission")
        try:
            return web.json_response(submission.to_json(names, encoded=_is_encoded(request)))
        except UnicodeDecodeError as error:
            raise RequestError(f"some attributes for this submission {NOT_TEXT}") from error

    async def _show_batch(self, request: web.Request) -> web.Response:
        names = _field_names(request.query)
        tokens = (request.headers.get("tokens") or request.query.get("tokens", "")).strip()
        found = tokens.split(",") if tokens else []
        _check_batch(len(found))
        return self._shown([await self._find(request, token) for token in found], names, request)

    def _shown(self, found: Sequence[Submission | None], names: Sequence[str], request: web.Request, **more: Any) -> web.Response:
        encoded = _is_encoded(request)
        try:
            shown = [one and one.to_json(names, encoded=encoded) for one in found]
        except UnicodeDecodeError as error:
            raise RequestError(f"some attributes for one or more submissions {NOT_TEXT}") from error
        return web.json_response({"submissions": shown, **more})

    async def _index(self, request: web.Request) -> web.Response:
        names = _field_names(request.query)
        page, per_page = _integer(request, "page", 1), _integer(request, "per_page", PER_PAGE)
        if page <= 0:
            raise RequestError(f"invalid page: {page}")
        if per_page < 0:
            raise RequestError(f"invalid per_page: {per_page}")
        every = self._store.newest(_owner(request))
        per_page = per_page or PER_PAGE
        pages = -(-len(every) // per_page)
        meta = {
            "current_page": page,
            "next_page": page + 1 if page < pages else None,
            "prev_page": page - 1 if page > 1 else None,
            "total_pages": pages,
            "total_count": len(every),
        }
        return self._shown(every[(page - 1) * per_page : page * per_page], names, request, meta=meta)

    async def _delete(self, request: web.Request) -> web.Response:
        raise RequestError("delete not allowed")

    async def _find(self, request: web.Request, token: str) -> Submission | None:
        """The submission, if whoever asks may see it; another gateway may have taken it."""
        if (found := self._store.get(token, _owner(request))) is not None:
            return found
        with contextlib.suppress(UnknownRunError, ValueError):
            return Submission.of(await find_run(request, uuid.UUID(token).hex))
        return None

    async def _languages(self, request: web.Request) -> web.Response:
        found = [language for language in languages_of(request.app[SERVICE].installed()) if not language["is_archived"]]
        return web.json_response([{name: one[name] for name in ("id", "name")} for one in found])

    async def _all_languages(self, request: web.Request) -> web.Response:
        found = languages_of(request.app[SERVICE].installed())
        return web.json_response([{name: one[name] for name in ("id", "name", "is_archived")} for one in found])

    async def _language(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        for language in languages_of(request.app[SERVICE].installed()):
            if str(language["id"]) == wanted:
                return web.json_response(language)
        raise UnknownRunError(f"there is no language {wanted[:20]!r}")

    async def _statuses(self, request: web.Request) -> web.Response:
        return web.json_response([status.to_json() for status in Status])

    async def _about(self, request: web.Request) -> web.Response:
        return web.json_response(about.about())

    async def _version(self, request: web.Request) -> web.Response:
        return web.Response(text=about.VERSION)

    async def _config_info(self, request: web.Request) -> web.Response:
        return web.json_response(about.config_info(request.app[SERVICE].config))

    async def _system_info(self, request: web.Request) -> web.Response:
        return web.json_response(about.system_info())

    async def _statistics(self, request: web.Request) -> web.Response:
        return web.json_response(about.statistics(self._store.newest(_owner(request))))

    async def _workers(self, request: web.Request) -> web.Response:
        return web.json_response(about.workers(request.app[SERVICE]))

    async def _authenticate(self, request: web.Request) -> web.Response:
        return web.Response()  # who is not known has been refused by now


def _call_back(request: web.Request, submission: Submission) -> None:
    """Send what `GET /submissions/TOKEN` gives to the address that the submission names."""
    url = submission.fields.callback_url or ""

    def told(how: Delivered) -> None:
        host = urllib.parse.urlsplit(url).hostname
        note(request, "callback", submission.token, host=host, ok=how.ok, outcome=how.outcome, attempts=how.attempts)

    request.app[HOOKS].send(Callback(url, secret=""), _message(submission), submission.owner, told)


def _message(submission: Submission) -> Message:
    body = json.dumps(submission.to_json(DEFAULT_FIELDS, encoded=True)).encode()
    return Message(submission.token, body, method="PUT")


def _message_of(run: Run) -> Message:
    """What is sent when the one run of a submission is over."""
    submission = Submission.of(run)
    assert submission is not None  # noqa: S101 (only runs of submissions have such a call)
    return _message(submission)


def _owner(request: web.Request) -> str | None:
    """Whose submissions the client may see; None for all."""
    tenant = caller_of(request).tenant
    return tenant.name if tenant else None


def _is_encoded(request: web.Request) -> bool:
    return request.query.get("base64_encoded") == "true"


def _integer(request: web.Request, name: str, default: int) -> int:
    """A number in the address; what is none is 0, as Ruby has it."""
    try:
        return max(-1, min(int(request.query.get(name, default)), 1 << 31))
    except ValueError:
        return 0


def _check_batch(size: int) -> None:
    if size > about.MAX_BATCH:
        raise RequestError(f"number of submissions in a batch should be less than or equal to {about.MAX_BATCH}")
    if not size:
        raise RequestError("there should be at least one submission in a batch")


def _field_names(params: Mapping[str, Any]) -> Sequence[str]:
    """The fields that an answer is to have."""
    given = params.get("fields")
    wanted = [name for name in given.split(",") if name] if isinstance(given, str) else []
    unknown = [name for name in wanted if name not in ALL_FIELDS and name != "*"]
    if unknown:
        raise RequestError(f"invalid fields: [{', '.join(unknown)[:200]}]")
    return ALL_FIELDS if "*" in wanted else wanted or DEFAULT_FIELDS


async def _params(request: web.Request) -> dict[str, Any]:
    """The parameters in the address, and those in the body over them: JSON or a form."""
    params: dict[str, Any] = dict(request.query)
    body = await request.app[BODIES].read(request)
    if not body.strip():
        return params
    if body.lstrip()[:1] != b"{" and request.content_type == "application/x-www-form-urlencoded":
        try:
            return params | dict(urllib.parse.parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=MAX_ITEMS))
        except ValueError as error:
            raise RequestError(f"the form cannot be used: {error}") from error
    if request.content_type.startswith("multipart/"):
        raise MediaTypeError("a body in parts is not taken", hint="send JSON")
    return params | parse_object(body)
