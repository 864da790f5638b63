"""The worker: claims messages, runs their handlers, settles.

One loop per queue asks the server for as many messages as there are free slots (a long poll; nothing is fetched ahead).
A handler that is an ``async def`` runs on the worker's event loop, a plain function in a thread of its own. What an attempt
does stands in :mod:`tidegate.attempt`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import secrets
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, Union
from urllib.parse import quote

from .attempt import AsyncContext, Attempt, Context, CutOff, Lease, Raised, Ran, Returned, Undecodable, judge, settle
from .drivers import AsyncDriver, Driver, Server
from .durations import Duration, ms, seconds
from .errors import TidegateError
from .exchange import encoded, exchange, exchange_json
from .keepalive import Held, Keepalive, Stop, extend
from .steps import Env, Request, Steps

log = logging.getLogger("tidegate.worker")

#: How long handlers that were told to stop have for it.
_GRACE = 5.0

Handler = Union[Callable[[Context, Any], Any], Callable[[AsyncContext, Any], Awaitable[Any]]]
HandlerT = TypeVar("HandlerT", bound=Handler)


@dataclass(frozen=True)
class Policy:
    """What a kind allows; stored by the server, so that it also knows when there is no worker."""

    max_attempts: int = 20
    backoff_base: Duration = 1
    backoff_cap: Duration = 600
    #: How long a handler may run.
    timeout: Duration = 300
    #: Crashes while running alone before a message is a dead letter.
    crash_limit: int = 3

    def wire(self) -> dict[str, Any]:
        """The body of a declaration."""
        return {
            "max_attempts": self.max_attempts,
            "backoff": {"base_ms": ms(self.backoff_base), "cap_ms": ms(self.backoff_cap)},
            "timeout_ms": ms(self.timeout),
            "crash_limit": self.crash_limit,
        }


@dataclass(frozen=True)
class _Registered:
    kind: str
    queue: str
    version: int
    policy: Policy
    function: Handler
    decode: Callable[[Any], Any] | None
    is_async: bool


@dataclass(frozen=True)
class Drained:
    """How a drain went."""

    #: Attempts that ended by themselves.
    finished: int = 0
    #: Attempts that were told to stop; their messages went back to their queues, and no attempt was counted.
    released: int = 0
    #: Handlers that did not yield; their messages come back when their leases lapse.
    abandoned: int = 0


class Worker:
    """Runs handlers.

    >>> worker = Worker("http://127.0.0.1:8181", token=TOKEN)
    >>> @worker.handler("greet")
    ... def greet(ctx, payload):
    ...     return f"Hello {payload['name']}!"
    >>> worker.run()          # until SIGTERM or Ctrl-C; `await worker.serve()` in an application with a loop
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tenant: str = "",
        name: str | None = None,
        concurrency: int = 10,
        queues: Mapping[str, int] | None = None,
        lease: Duration = 30,
        poll: Duration = 5,
        drain_within: Duration = 30,
        timeout: Duration = 10,
        ca_file: str | None = None,
        env: Env = Env(),
    ) -> None:
        """``concurrency`` bounds what runs at once for each queue, ``queues`` says otherwise for some. ``lease``: how long a
        message stays ours without being extended; a call to a remote must be over within it. ``poll``: how long a claim
        waits at the server; a drain may take as long. ``drain_within``: how long running handlers may take to finish."""
        self._server = Server(url, token, tenant, seconds(timeout), ca_file)
        self._env = env
        self.name = name or f"py{os.getpid()}-{secrets.token_hex(3)}"
        self._concurrency = concurrency
        self._most = dict(queues or {})
        self._lease = seconds(lease)
        self._drain_within = seconds(drain_within)
        # Leases count from before the claim was sent: one that waits long would hand out leases that are nearly over.
        self._poll = min(seconds(poll), self._lease / 3)
        self._handlers: dict[str, _Registered] = {}
        self._stop: Callable[[], None] = lambda: None
        if self._lease < 1:
            raise ValueError(f"a lease of {self._lease} s; hint: a second or more")

    def handler(
        self,
        kind: str,
        *,
        queue: str | None = None,
        version: int = 1,
        policy: Policy = Policy(),
        decode: Callable[[Any], Any] | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Registers the handler of a kind. ``queue``: where its messages wait, unless said otherwise one named like the
        kind. ``version``: the newest payload version it reads. ``decode`` makes what the handler gets of the payload; what it
        refuses is a dead letter at once."""

        def register(function: HandlerT) -> HandlerT:
            if kind in self._handlers:
                raise ValueError(f"two handlers for kind {kind}; hint: a kind names one handler")
            is_async = inspect.iscoroutinefunction(function)
            self._handlers[kind] = _Registered(kind, queue or kind, version, policy, function, decode, is_async)
            return function

        return register

    def run(self) -> Drained:
        """Works until SIGTERM or SIGINT, then drains. A second signal ends the process as if there were no worker."""
        return asyncio.run(self._run())

    async def _run(self) -> Drained:
        loop = asyncio.get_running_loop()

        def told(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told, number)
        return await self.serve()

    def stop(self) -> None:
        """Claims nothing more and drains. May be called from any thread."""
        self._stop()

    async def serve(self) -> Drained:
        """Works until :meth:`stop`, then drains."""
        if not self._handlers:
            raise ValueError("a worker without a handler; hint: @worker.handler(KIND)")
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        self._stop = lambda: _soon(loop, stopping.set)
        driver, async_driver = Driver(self._server), AsyncDriver(self._server)
        # Of its own: an extension must not wait for a connection that handlers hold.
        keepalive = Keepalive(self._env, Driver(self._server), self._lease)
        try:
            for registered in self._handlers.values():
                await async_driver.run(declare(self._env, registered.kind, registered.policy))
            keepalive.start()
            running = _Running(self, driver, async_driver, keepalive, stopping)
            return await running.until_stopped()
        finally:
            keepalive.close()
            driver.close()
            await async_driver.close()


def declare(env: Env, kind: str, policy: Policy) -> Steps[None]:
    """Tells the server what a kind allows."""
    path = f"/v1/kinds/{quote(kind, safe='')}/policy"
    yield from exchange(env, Request("PUT", path, body=encoded(policy.wire()), repeatable=True))


def claim(
    env: Env, worker: str, queue: str, slots: int, kinds: Iterable[tuple[str, int]], lease: float, poll: float
) -> Steps[tuple[list[Lease], float, int]]:
    """Takes messages of one queue: the leases, when the claim was first sent, and how many messages ended instead.

    A claim whose reply is missing is repeated under its nonce and gives the same leases, which hold no longer for being
    told twice; after the length of a lease whatever it took has lapsed.
    """
    sent_at = env.clock()
    body = {
        "worker": worker,
        "queues": [{"queue": queue, "slots": slots}],
        "kinds": [{"kind": kind, "version": version} for kind, version in kinds],
        "lease_ms": ms(lease),
        "nonce": secrets.token_hex(16),
        "wait_ms": ms(poll),
    }
    request = Request("POST", "/v1/leases", body=encoded(body), repeatable=True, patience=poll)
    reply: Any = yield from exchange_json(env, request, within=lease)
    return [Lease.read(said) for said in reply["leases"]], sent_at, reply.get("ended", 0)


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    # The loop may have ended: then there is nobody left to be told.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


class _Gate:
    """Everybody together, or one suspect alone."""

    def __init__(self) -> None:
        self._inside = 0
        self._alone = False
        self._waiting = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def together(self) -> Any:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and self._waiting == 0)
            self._inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def alone(self) -> Any:
        async with self._changed:
            self._waiting += 1
            try:
                await self._changed.wait_for(lambda: not self._alone and self._inside == 0)
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            async with self._changed:
                self._alone = False
                self._changed.notify_all()


class _Running:
    """A worker while it runs."""

    def __init__(
        self, worker: Worker, driver: Driver, async_driver: AsyncDriver, keepalive: Keepalive, stopping: asyncio.Event
    ) -> None:
        self._worker = worker
        self._env = worker._env
        self._handlers = worker._handlers
        self._driver = driver
        self._async_driver = async_driver
        self._keepalive = keepalive
        self._stopping = stopping
        self._gate = _Gate()
        self._attempts: set[asyncio.Task[None]] = set()
        self._released = 0

    async def until_stopped(self) -> Drained:
        queues = {registered.queue for registered in self._handlers.values()}
        loops = [asyncio.create_task(self._serve_queue(queue)) for queue in sorted(queues)]
        try:
            await asyncio.gather(*loops)
        except BaseException:
            for task in (*loops, *self._attempts):
                task.cancel()
            raise
        return await self._drain()

    async def _serve_queue(self, queue: str) -> None:
        most = self._worker._most.get(queue, self._worker._concurrency)
        slots = asyncio.Semaphore(most)
        kinds = [(one.kind, one.version) for one in self._handlers.values() if one.queue == queue]
        failures = 0
        while not self._stopping.is_set():
            free = await self._free(slots, most)
            if free == 0:
                return
            started: list[Lease] = []
            asked_at = self._env.clock()
            try:
                steps = claim(self._env, self._worker.name, queue, free, kinds, self._worker._lease, self._worker._poll)
                started, sent_at, ended = await self._async_driver.run(steps)
                failures = 0
                for lease in started:
                    self._start(lease, sent_at, slots)
            except TidegateError as error:
                ended, failures = 0, failures + 1
                log.warning("could not claim from queue %s: %s", queue, error)
            finally:
                for _ in range(free - len(started)):
                    slots.release()
            # A server that does not wait must not be asked all the time.
            if failures or (not started and not ended and self._env.clock() - asked_at < 0.05):
                pause = self._env.retries.pause(max(1, failures), 0.1, self._env.unit())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)

    async def _free(self, slots: asyncio.Semaphore, most: int) -> int:
        """Takes all free slots, waiting for one; 0 if the worker drains before there is one."""
        first = asyncio.create_task(slots.acquire())
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({first, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not first.done():
            first.cancel()
            return 0
        free = 1
        while free < most and not slots.locked():
            await slots.acquire()
            free += 1
        return free

    def _start(self, lease: Lease, sent_at: float, slots: asyncio.Semaphore) -> None:
        held = Held(lease.id, lease.token, lease.lease, sent_at, self._env.clock)
        # Kept from here on: waiting at the gate may take long.
        self._keepalive.hold(held)
        task = asyncio.create_task(self._attempt(lease, held))
        self._attempts.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._keepalive.release(held)
            self._attempts.discard(task)
            slots.release()
            if not task.cancelled() and task.exception() is not None:
                log.error("an attempt died; its message comes back when its lease lapses", exc_info=task.exception())

        task.add_done_callback(over)

    async def _attempt(self, lease: Lease, held: Held) -> None:
        attempt = Attempt(lease, held, self._env, self._driver, self._async_driver)
        async with self._gate.alone() if lease.suspect else self._gate.together():
            ran = await self._run_handler(attempt)
            outcome = judge(attempt, ran)
            if outcome is None:
                log.info("the lease of message %s was lost while its handler was running", lease.id)
                return
            if outcome["type"] == "release":
                self._released += 1
            settled = await self._async_driver.run(settle(attempt, outcome))
            if settled.state is None:
                log.warning("message %s was not settled as %s: %s", lease.id, outcome["type"], settled.why)
            else:
                log.debug("message %s is %s after %s", lease.id, settled.state, outcome["type"])

    async def _run_handler(self, attempt: Attempt) -> Ran:
        lease, held = attempt.lease, attempt.held
        stopped = Stop.DRAINED if self._stopping.is_set() else held.stopped()
        if stopped is not None:
            # Claimed while the worker was told to stop, or kept waiting for too long.
            return CutOff(stopped)
        if lease.suspect:
            # Said before it starts, or a crash would be held against nobody, for ever.
            try:
                await self._async_driver.run(extend(self._env, [held], alone=True))
            except TidegateError as error:
                log.warning("a suspect did not start: that it runs alone could not be stored: %s", error)
                return CutOff(Stop.DRAINED)
            if held.stopped() is not None:
                return CutOff(held.stopped() or Stop.LEASE_LOST)
        registered = self._handlers[lease.kind]
        payload = lease.payload
        if registered.decode is not None:
            try:
                payload = registered.decode(payload)
            except Exception as error:  # noqa: BLE001: whatever a decoder raises, it could not decode
                return Undecodable(error)
        return await self._watched(attempt, registered, payload)

    async def _watched(self, attempt: Attempt, registered: _Registered, payload: Any) -> Ran:
        """Runs a handler until it ends; cuts it off when it has to stop, if it can be."""
        held, clock, loop = attempt.held, self._env.clock, asyncio.get_running_loop()
        changed = asyncio.Event()
        held.changed = lambda: _soon(loop, changed.set)
        task: asyncio.Future[Any]
        if registered.is_async:
            task = asyncio.ensure_future(_awaited(registered.function, AsyncContext(attempt), payload))
        else:
            task = _in_thread(registered.function, Context(attempt), payload)
        over_at = clock() + seconds(registered.policy.timeout)
        while not task.done():
            if clock() >= over_at:
                held.stop(Stop.TIMED_OUT)
            stop = held.stopped()
            if stop is not None:
                break
            changed.clear()
            looking = asyncio.create_task(changed.wait())
            look_in = max(0.0, min(over_at, held.gives_up_at()) - clock())
            await asyncio.wait({task, looking}, timeout=look_in, return_when=asyncio.FIRST_COMPLETED)
            looking.cancel()
        if task.done():
            return _ran(task)
        assert stop is not None
        held.stop(stop)
        if registered.is_async:
            task.cancel()
        log.info("the handler of message %s is told to stop: %s", attempt.lease.id, stop.value)
        # A plain function cannot be cut off: it keeps its slot, and its lease is kept, until it yields.
        await asyncio.wait({task})
        ran = _ran(task)
        was_cut = isinstance(ran, Raised) and isinstance(ran.error, asyncio.CancelledError)
        return CutOff(stop) if was_cut else ran

    async def _drain(self) -> Drained:
        running = len(self._attempts)
        log.info("worker %s drains, %d running", self._worker.name, running)
        await _all_done(self._attempts, self._worker._drain_within)
        told = len(self._attempts)
        if told:
            self._keepalive.stop_all(Stop.DRAINED)
            await _all_done(self._attempts, _GRACE)
        abandoned = len(self._attempts)
        for task in self._attempts:
            task.cancel()
        return Drained(running - told, self._released, abandoned)


async def _all_done(tasks: set[asyncio.Task[None]], within: float) -> None:
    if tasks:
        await asyncio.wait(set(tasks), timeout=within)
        # Their callbacks, which forget them, run in the loop's next round.
        await asyncio.sleep(0)


async def _awaited(function: Callable[..., Any], context: AsyncContext, payload: Any) -> Any:
    return await function(context, payload)


def _in_thread(function: Callable[..., Any], context: Context, payload: Any) -> asyncio.Future[Any]:
    """A plain function in a thread of its own: one that never yields must not keep the process from its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def run() -> None:
        try:
            value = function(context, payload)
        except BaseException as error:  # noqa: BLE001: the attempt judges it
            wrapped = RuntimeError("the handler raised StopIteration") if isinstance(error, StopIteration) else error
            _soon(loop, lambda: tell(future.set_exception, wrapped))
        else:
            _soon(loop, lambda: tell(future.set_result, value))

    threading.Thread(target=run, name=f"tidegate-{context.id}", daemon=True).start()
    return future


def _ran(task: asyncio.Future[Any]) -> Ran:
    if task.cancelled():
        return Raised(asyncio.CancelledError())
    error = task.exception()
    return Returned(task.result()) if error is None else Raised(error)
