"""The routes of Piston v2."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from mayfly.api.compat.dialect import Dialect, Path, run_to_end, text_of
from mayfly.api.compat.piston.bodies import read_body
from mayfly.api.compat.piston.jobs import find_runtime, make_job, runtime_of
from mayfly.api.compat.piston.results import result_of
from mayfly.api.compat.piston.socket import connect
from mayfly.api.intake import SERVICE
from mayfly.errors import RequestError


class Piston(Dialect):
    """The contract."""

    name = "piston"

    def paths(self) -> Sequence[Path]:
        """All that it answers. Clients' base URLs end before `execute`, or before `api`."""
        found = [Path("GET", "/", self._root)]
        for base in ("/api/v2", ""):
            found += [
                Path("GET", f"{base}/connect", connect),
                Path("GET", f"{base}/runtimes", self._runtimes),
                Path("POST", f"{base}/execute", self._execute),
                Path("GET", f"{base}/packages", self._packages),
                Path("POST", f"{base}/packages", self._change_packages),
                Path("DELETE", f"{base}/packages", self._change_packages),
            ]
        return found

    def refuse(self, status: int, problem: Mapping[str, Any]) -> web.Response:
        """An error: whatever is wrong with a value is a 400, and what is not there 404."""
        if problem["code"] in ("not_found", "method_not_allowed"):
            return web.json_response({"message": "Not Found"}, status=404)
        if problem["code"] == "unsupported_media_type":
            return web.json_response({"message": "requests must be of type application/json"}, status=415)
        if problem["code"] in ("invalid_value", "unknown_language"):
            status = 400
        return web.json_response({"message": text_of(problem)}, status=status)

    async def _root(self, request: web.Request) -> web.Response:
        return web.json_response({"message": "Piston v3.1.1"})

    async def _runtimes(self, request: web.Request) -> web.Response:
        return web.json_response([runtime_of(image) for image in request.app[SERVICE].installed()])

    async def _packages(self, request: web.Request) -> web.Response:
        packages = (runtime_of(image) for image in request.app[SERVICE].installed())
        found = [{"language": one["language"], "language_version": one["version"], "installed": True} for one in packages]
        return web.json_response(found)

    async def _change_packages(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        language, version = body.get("language"), body.get("version")
        if find_runtime(request.app[SERVICE], str(language), str(version)) is None:
            return web.json_response({"message": f"Requested package {language}-{version} does not exist"}, status=404)
        raise RequestError("packages are installed and removed on the server alone", hint="use imagegen there")

    async def _execute(self, request: web.Request) -> web.Response:
        job = make_job(request.app[SERVICE], await read_body(request))
        run = await run_to_end(request, job.snippet, job.image)
        return web.json_response(result_of(run, job.image))
