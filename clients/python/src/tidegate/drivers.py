"""What carries steps out: one driver that blocks, one that awaits. They decide nothing.

Also where a server is and who we are there, and which errors of the HTTP client mean that a request certainly never left.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from .steps import Ask, NoReply, Pause, Reply, Request, Step, Steps

T = TypeVar("T")

#: Errors of a connection that was never made. Everything else may have carried the request.
NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


@dataclass(frozen=True)
class Server:
    """Where a server is, and who we are there."""

    url: str
    token: str | None = field(default=None, repr=False)
    tenant: str = ""
    #: How long the server may take, beside what it takes on purpose.
    timeout: float = 10.0
    #: A file with the certificate authority of the server, if it is one of your own.
    ca_file: str | None = None

    def options(self) -> dict[str, Any]:
        """The arguments of an HTTP client."""
        headers = {"Accept": "application/json, application/problem+json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        if self.tenant:
            headers["Tidegate-Tenant"] = self.tenant
        # Whoever waits for many messages holds a connection for each.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        # To read the certificate authorities of the machine takes longer than many requests.
        verify: Any = self.url.startswith("https:") if self.ca_file is None else _tls(self.ca_file)
        return {"base_url": self.url.rstrip("/"), "headers": headers, "limits": limits, "verify": verify}

    def request(self, request: Request) -> dict[str, Any]:
        """The arguments of one request."""
        headers = dict(request.headers)
        if request.body is not None:
            headers.setdefault("Content-Type", "application/json")
        return {
            "method": request.method,
            "url": request.path,
            "params": dict(request.query) or None,
            "content": request.body,
            "headers": headers,
            "timeout": httpx.Timeout(self.timeout, read=self.timeout + request.patience),
        }


def _tls(ca_file: str) -> Any:
    import ssl

    return ssl.create_default_context(cafile=ca_file)


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.content)


def _no_reply(error: httpx.HTTPError | httpx.InvalidURL) -> NoReply:
    why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return NoReply(why, left=not isinstance(error, (*NEVER_LEFT, httpx.InvalidURL)))


class Driver:
    """Carries steps out, blocking. May be used by several threads at once."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._http = httpx.Client(**server.options())

    def run(self, steps: Steps[T]) -> T:
        """All steps, to their end."""
        answer: Any = None
        failed: BaseException | None = None
        while True:
            try:
                step = steps.send(answer) if failed is None else steps.throw(failed)
            except StopIteration as end:
                value: T = end.value
                return value
            try:
                answer, failed = self._carry_out(step), None
            except BaseException as error:  # noqa: BLE001: the steps decide what it means
                failed = error

    def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Ask):
            return step.function(step.key)
        try:
            return _reply(self._http.request(**self.server.request(step)))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _no_reply(error) from error

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


class AsyncDriver:
    """Carries steps out, awaiting."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._http = httpx.AsyncClient(**server.options())

    async def run(self, steps: Steps[T]) -> T:
        """All steps, to their end."""
        answer: Any = None
        failed: BaseException | None = None
        while True:
            try:
                step = steps.send(answer) if failed is None else steps.throw(failed)
            except StopIteration as end:
                value: T = end.value
                return value
            try:
                answer, failed = await self._carry_out(step), None
            except BaseException as error:  # noqa: BLE001: the steps decide what it means
                failed = error

    async def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Ask):
            return await asyncio.wait_for(step.function(step.key), step.within)
        try:
            return _reply(await self._http.request(**self.server.request(step)))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _no_reply(error) from error

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()
