"""The clients: what :mod:`tidegate.api` describes, once blocking and once awaited. Nothing is said twice.

A method here is an operation there, driven by one of the two drivers: its arguments, its documentation and what it decides
are the operation's own.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from . import api
from .drivers import AsyncDriver, Driver, Server
from .durations import Duration, seconds
from .steps import Env, Steps

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(operation: Callable[Concatenate[Env, P], Steps[T]]) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._driver.run(operation(self._env, *args, **kwargs))

    return method


def _awaited(operation: Callable[Concatenate[Env, P], Steps[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @functools.wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._driver.run(operation(self._env, *args, **kwargs))

    return method


class Client:
    """A connection to a server. May be used by several threads at once.

    ``retry_within``: how long a call that is safe to repeat is repeated, in all; every call but none is, because an enqueue
    has its key.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tenant: str = "",
        timeout: Duration = 10,
        ca_file: str | None = None,
        env: Env = Env(),
    ) -> None:
        self._env = env
        self._driver = Driver(Server(url, token, tenant, seconds(timeout), ca_file))

    enqueue = _blocking(api.enqueue)
    enqueue_many = _blocking(api.enqueue_many)
    get = _blocking(api.get)
    find = _blocking(api.find)
    wait = _blocking(api.wait)
    flow = _blocking(api.flow)
    messages = _blocking(api.messages)
    dead = _blocking(api.dead)
    parked = _blocking(api.parked)

    def close(self) -> None:
        """Closes the connections."""
        self._driver.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """A connection to a server, awaited."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tenant: str = "",
        timeout: Duration = 10,
        ca_file: str | None = None,
        env: Env = Env(),
    ) -> None:
        self._env = env
        self._driver = AsyncDriver(Server(url, token, tenant, seconds(timeout), ca_file))

    enqueue = _awaited(api.enqueue)
    enqueue_many = _awaited(api.enqueue_many)
    get = _awaited(api.get)
    find = _awaited(api.find)
    wait = _awaited(api.wait)
    flow = _awaited(api.flow)
    messages = _awaited(api.messages)
    dead = _awaited(api.dead)
    parked = _awaited(api.parked)

    async def close(self) -> None:
        """Closes the connections."""
        await self._driver.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
