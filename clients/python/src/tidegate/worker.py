"""The worker: claims what it has handlers and free slots for, and runs each message. It decides nothing about a message.

One loop for each queue asks for as many messages as there are free slots, and waits at the server for them. A handler that
blocks runs on a thread of its own, one that awaits as a task; either ends with a settlement, which is repeated until it is
answered. Start reading at :meth:`_Service.run`, and for one message at :meth:`_Service._attempt`.
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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, Union

from . import leases
from .attempt import Raised, Ran, Returned, Undecodable, settlement
from .context import AsyncContext, Context
from .drivers import AsyncDriver, Driver, Server
from .durations import Duration, ms, seconds
from .effects import Run
from .errors import Forbidden, LeaseLost, NoSuchMessage, Problem, TidegateError
from .keepalive import Held, Keepalive, Stopped
from .leases import Claim, Lease, Policy, may_pass
from .steps import Env

log = logging.getLogger("tidegate.worker")

#: The longest pause between claims while the server does not answer, in seconds.
_LONGEST_PAUSE = 5.0
#: How long a drain waits for handlers that were told to stop, and for a server that does not answer, in seconds.
_GRACE = 2.0

Handler = Union[Callable[[Context, Any], Any], Callable[[AsyncContext, Any], Awaitable[Any]]]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True)
class _Registered:
    kind: str
    queue: str
    version: int
    policy: Policy
    decode: Callable[[Any, int], Any] | None
    function: Callable[..., Any]
    awaits: bool


@dataclass(frozen=True)
class Drained:
    """How a worker ended."""

    #: Runs that ended by themselves after the worker was told to stop.
    finished: int
    #: Runs that were told to stop; their messages went back to their queues, and no attempt was counted.
    released: int
    #: Handlers that did not end; their messages come back when their leases lapse.
    abandoned: int


class Worker:
    """Runs messages of a server by handlers, one for each kind::

        worker = Worker("http://127.0.0.1:7401", token=TOKEN)

        @worker.handle("greet")
        def greet(ctx: Context, payload: Any) -> str:
            return f"Hello {payload['name']}"

        worker.run()

    A handler returns its result, which completes the message, or raises :class:`~tidegate.Fail`, :class:`~tidegate.Retry` or
    :class:`~tidegate.Snooze`; any other exception is one that may pass. It may be run again after a crash: what it does to the
    world, it does by ``ctx.effect``. ``async def`` handlers get an :class:`~tidegate.AsyncContext`.

    ``concurrency``: how many messages of each queue run at once; ``queues`` names some that differ, or that no handler names.
    ``lease``: how long a message is lost to others when this process is killed. ``drain``: how long a worker that is stopped
    waits for its handlers before it hands their messages back. ``wait``: how long a claim waits at the server at most; for a
    server whose ``limits.wait`` is shorter.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tenant: str = "",
        timeout: Duration = 10,
        ca_file: str | None = None,
        concurrency: int = 16,
        queues: Mapping[str, int] | None = None,
        lease: Duration = 30,
        drain: Duration = 30,
        wait: Duration = 20,
        name: str | None = None,
        env: Env = Env(),
    ) -> None:
        self.name = name or f"pid{os.getpid()}-{secrets.token_hex(3)}"
        self._server = Server(url, token, tenant, seconds(timeout), ca_file)
        self._concurrency = concurrency
        self._queues = dict(queues or {})
        self._lease = seconds(lease)
        self._drain = seconds(drain)
        self._wait = seconds(wait)
        self._env = env
        self._handlers: dict[str, _Registered] = {}
        self._stop = threading.Event()
        self._tell: Callable[[], None] = lambda: None

    def handle(
        self,
        kind: str,
        *,
        queue: str | None = None,
        version: int = 1,
        policy: Policy = Policy(),
        decode: Callable[[Any, int], Any] | None = None,
    ) -> Callable[[H], H]:
        """Registers a handler for a kind, on the queue of that name unless another one is given.

        ``version``: the newest version of the payload that it reads; newer ones are left alone. ``decode`` gets the payload
        and its version, and makes of it what the handler gets; what it raises makes a dead letter of the message at once.
        """

        def register(function: H) -> H:
            if kind in self._handlers:
                raise ValueError(f"two handlers for kind {kind}; hint: a kind names one handler")
            # Also an object that is called as one.
            awaits = any(inspect.iscoroutinefunction(one) for one in (function, getattr(function, "__call__", None)))
            self._handlers[kind] = _Registered(kind, queue or kind, version, policy, decode, function, awaits)
            return function

        return register

    def run(self) -> Drained:
        """Runs until :meth:`stop`, SIGTERM or SIGINT, and drains. A second signal ends the process at once."""
        return asyncio.run(self._serve(signals=threading.current_thread() is threading.main_thread()))

    async def serve(self) -> Drained:
        """Runs until :meth:`stop`, inside an event loop that is there already. Signals are its caller's."""
        return await self._serve(signals=False)

    def stop(self) -> None:
        """Claims nothing more, lets what runs finish, hands back the rest. May be called on any thread; does not wait."""
        self._stop.set()
        self._tell()

    def slots(self) -> dict[str, int]:
        """How many messages of each queue run at once."""
        named = {handler.queue: self._concurrency for handler in self._handlers.values()}
        slots = {**named, **self._queues}
        for queue, most in slots.items():
            if most < 1:
                raise ValueError(f"a concurrency of {most} for queue {queue}; hint: pause the queue if nothing is to run")
        return slots

    async def _serve(self, *, signals: bool) -> Drained:
        if not self._handlers:
            raise ValueError("a worker without a handler; hint: @worker.handle(kind)")
        loop = asyncio.get_running_loop()
        service = _Service(self)

        def tell() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(service.stop)

        self._tell = tell
        if self._stop.is_set():
            service.stop()
        with _stopped_by_signals(loop, self.stop) if signals else contextlib.nullcontext():
            return await service.run()


@contextlib.contextmanager
def _stopped_by_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Any:
    signals = (signal.SIGTERM, signal.SIGINT)

    def restore() -> None:
        for one in signals:
            loop.remove_signal_handler(one)

    def stop_once() -> None:
        # The next one ends the process.
        restore()
        stop()

    try:
        for one in signals:
            loop.add_signal_handler(one, stop_once)
    except NotImplementedError:
        log.warning("this platform's event loop knows no signals; hint: call Worker.stop")
    try:
        yield
    finally:
        with contextlib.suppress(NotImplementedError):
            restore()


class _Service:
    """One life of a worker. Everything here happens in the event loop."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._slots = worker.slots()
        self._handlers = worker._handlers
        self._env = worker._env
        self._lease = worker._lease
        self._loop = asyncio.get_running_loop()
        self._async_driver = AsyncDriver(worker._server)
        self._driver = Driver(worker._server)
        # Short, so that a second try is still in time.
        self._keepers_driver = Driver(replace(worker._server, timeout=min(worker._server.timeout, self._lease / 6)))
        self._keepalive = Keepalive(self._env, self._keepers_driver, self._lease)
        self._busy = dict.fromkeys(self._slots, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        #: Runs that passed the gate, and suspects that wait for it or passed it.
        self._running = 0
        self._suspects = 0
        self._released = 0

    def stop(self) -> None:
        """Claims nothing more."""
        self._stopping.set()
        self._poke()

    async def run(self) -> Drained:
        """Claims until it is stopped, and drains."""
        self._keepalive.start()
        queues: list[asyncio.Future[None]] = []
        try:
            if await self._declare():
                log.info("worker %s started", self._worker.name)
                queues = [asyncio.ensure_future(self._serve_queue(queue)) for queue in self._slots]
                await asyncio.wait(queues, return_when=asyncio.FIRST_EXCEPTION)
                # One that failed ends them all, and what runs is drained before that is told.
                self.stop()
                await asyncio.wait(queues)
            drained = await self._drain()
            for queue in queues:
                queue.result()
            return drained
        finally:
            for queue in queues:
                queue.cancel()
            # Only something is left here if this was cancelled, or failed.
            self._keepalive.stop_all(Stopped.DRAINED)
            await asyncio.to_thread(self._keepalive.close)
            await self._async_driver.close()
            self._driver.close()
            self._keepers_driver.close()

    async def _declare(self) -> bool:
        """Says what the kinds allow, as far as it may; whether it was not stopped before the server answered."""
        for handler in self._handlers.values():
            pause = 0.0
            while not self._stopping.is_set():
                try:
                    await self._async_driver.run(leases.declare(self._env, handler.kind, handler.policy))
                    break
                except Forbidden as error:
                    # The kind is in queues that are none of this worker's: others say what it allows. Whether this worker
                    # may work at all is said to its first claim.
                    log.warning("worker %s: the policy of kind %s stays as it is: %s", self._worker.name, handler.kind, error)
                    break
                except TidegateError as error:
                    # What can never succeed is told to whoever starts it.
                    if not may_pass(error):
                        raise
                    pause = await self._pause_after(error, pause)
        return not self._stopping.is_set()

    async def _serve_queue(self, queue: str) -> None:
        pause, has_claimed = 0.0, False
        while True:
            # A suspect waits until nothing else runs: until then nothing more is taken.
            await self._until(lambda: self._is_free(queue) or self._stopping.is_set())
            if self._stopping.is_set():
                return
            try:
                await self._claim(queue)
                pause, has_claimed = 0.0, True
            except TidegateError as error:
                # What never worked is told to whoever starts it; what did comes back: a server, a token that is repaired.
                if not has_claimed and not may_pass(error):
                    raise
                pause = await self._pause_after(error, pause)

    def _is_free(self, queue: str) -> bool:
        return self._busy[queue] < self._slots[queue] and not self._suspects

    async def _pause_after(self, error: TidegateError, last: float) -> float:
        """The pause that was made: never the end of a worker, and never longer than it has to be."""
        pause = min(max(0.1, last * 2), _LONGEST_PAUSE)
        log.warning("worker %s: %s; next try in %.1f s", self._worker.name, error, max(pause, error.retry_after or 0.0))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), max(pause, error.retry_after or 0.0))
        return pause

    async def _claim(self, queue: str) -> None:
        """Fills the free slots of a queue."""
        claim = Claim(
            worker=self._worker.name,
            queue=queue,
            slots=min(self._slots[queue] - self._busy[queue], 1000),
            kinds={handler.kind: handler.version for handler in self._handlers.values()},
            nonce=secrets.token_hex(16),
            lease=self._lease,
            # A lease counts from before the claim: what comes last must still have most of it.
            wait=min(self._worker._wait, self._lease / 3),
        )
        sent_at = self._env.clock()
        claiming = asyncio.ensure_future(self._async_driver.run(leases.claim(self._env, claim)))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({claiming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if claiming.done():
                for lease in claiming.result():
                    self._start(lease, sent_at)
                return
        finally:
            stopping.cancel()
            claiming.cancel()
        await asyncio.wait({claiming})
        # It may have failed at this very moment: then there is nobody to be told.
        _ = claiming.cancelled() or claiming.exception()
        await self._hand_back(claim, sent_at)

    async def _hand_back(self, claim: Claim, sent_at: float) -> None:
        """What was handed out to a claim whose answer nobody waited for."""
        again = replace(claim, slots=0, wait=0.0)
        try:
            came = await self._async_driver.run(leases.claim(self._env, again, within=_GRACE))
        except TidegateError as error:
            log.info("worker %s: what the last claim brought comes back when its lease lapses: %s", self._worker.name, error)
            return
        for lease in came:
            held = self._keepalive.hold(lease, sent_at)
            held.stop(Stopped.DRAINED)
            self._spawn(self._settle_and_release(held))

    async def _settle_and_release(self, held: Held) -> None:
        try:
            await self._settle(held, {"outcome": "released"})
        finally:
            self._keepalive.release(held)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start(self, lease: Lease, sent_at: float) -> None:
        held = self._keepalive.hold(lease, sent_at)
        self._busy[lease.message.queue] += 1
        self._suspects += lease.suspect
        # Whoever waits at the gate is woken by it as well.
        held.on_stop(lambda: self._from_any_thread(self._poke))
        self._spawn(self._attempt(lease, held))

    async def _attempt(self, lease: Lease, held: Held) -> None:
        """The life of one run: gate → run → classify → settle."""
        passed = False
        try:
            passed = await self._pass_gate(lease, held)
            if not passed:
                return
            run = Run(lease, held)
            ran = await self._run_handler(self._handlers[lease.message.kind], run)
            ended = settlement(run, ran)
            if ended is None:
                log.info("the lease of message %s was lost while its handler was running", lease.message.id)
                return
            await self._settle(held, ended)
        except Exception:
            # Its lease lapses, and the message comes back.
            log.exception("message %s was not settled", lease.message.id)
        finally:
            self._keepalive.release(held)
            self._running -= passed
            self._suspects -= lease.suspect
            self._busy[lease.message.queue] -= 1
            self._poke()

    async def _pass_gate(self, lease: Lease, held: Held) -> bool:
        """Who may run: everybody together, or a suspect alone. False when it should not start any more."""
        def may_pass_gate() -> bool:
            return self._running == 0 if lease.suspect else self._suspects == 0

        await self._until(lambda: may_pass_gate() or held.stopped is not None)
        if held.stopped is None:
            self._running += 1
            if not lease.suspect or await self._says_that_it_is_alone(lease, held):
                return True
            self._running -= 1
        if held.stopped is not Stopped.LEASE_LOST:
            await self._settle(held, {"outcome": "released"})
        return False

    async def _says_that_it_is_alone(self, lease: Lease, held: Held) -> bool:
        """Said before it starts, or a crash would be held against nobody, for ever."""
        sent_at = self._env.clock()
        within = held.left(sent_at)
        try:
            extending = leases.extend(self._env, [lease], self._lease, alone=True, within=within)
            verdict = (await self._async_driver.run(extending))[0]
        except TidegateError as error:
            log.warning("suspect %s did not start: %s", lease.message.id, error)
            return False
        if isinstance(verdict, (LeaseLost, NoSuchMessage)):
            held.stop(Stopped.LEASE_LOST)
        if isinstance(verdict, Problem):
            return False
        held.cancel_requested = held.cancel_requested or verdict
        return True

    async def _run_handler(self, handler: _Registered, run: Run) -> Ran:
        ending = self._as_task(handler, run) if handler.awaits else self._on_thread(handler, run)
        done, _ = await asyncio.wait({ending}, timeout=seconds(handler.policy.timeout))
        if not done:
            log.warning("the handler of message %s is over its time", run.lease.message.id)
            run.held.stop(Stopped.TIMED_OUT)
            # It keeps its slot until it yields.
            await asyncio.wait({ending})
        return Raised(asyncio.CancelledError()) if ending.cancelled() else ending.result()

    def _as_task(self, handler: _Registered, run: Run) -> asyncio.Future[Ran]:
        async def body() -> Ran:
            try:
                payload = _decoded(handler, run.lease)
            except Exception as error:
                return Undecodable(error)
            try:
                return Returned(await handler.function(AsyncContext(self._env, run, self._async_driver), payload))
            except BaseException as error:  # noqa: BLE001: whatever it was, the message is told of it
                return Raised(error)

        task = self._loop.create_task(body())
        run.held.on_stop(lambda: self._from_any_thread(task.cancel))
        return task

    def _on_thread(self, handler: _Registered, run: Run) -> asyncio.Future[Ran]:
        ending: asyncio.Future[Ran] = self._loop.create_future()

        def end(ran: Ran) -> None:
            if not ending.done():
                ending.set_result(ran)

        def body() -> Ran:
            try:
                payload = _decoded(handler, run.lease)
            except Exception as error:
                return Undecodable(error)
            try:
                return Returned(handler.function(Context(self._env, run, self._driver), payload))
            except BaseException as error:  # noqa: BLE001: whatever it was, the message is told of it
                return Raised(error)

        def serve() -> None:
            ran = body()
            self._from_any_thread(lambda: end(ran))

        # A daemon: one that never ends must not keep the process.
        threading.Thread(target=serve, name=f"tide-{handler.kind}", daemon=True).start()
        return ending

    async def _settle(self, held: Held, ended: Mapping[str, Any]) -> None:
        """Stores the end of a run, again and again until it is known to be stored or somebody else may have the message."""
        lease, id = held.lease, held.lease.message.id
        self._released += ended["outcome"] == "released"
        while True:
            left = held.left(self._env.clock())
            try:
                state = await self._async_driver.run(leases.settle(self._env, lease, ended, within=left))
            except (LeaseLost, NoSuchMessage) as error:
                known = "whether it was settled before is not known" if error.maybe_done else "it was not settled"
                log.info("the lease of message %s was lost: %s", id, known)
                return
            except TidegateError as error:
                other = _instead(error, ended)
                if other is None:
                    log.error("message %s was not settled as %s: %s", id, ended["outcome"], error)
                    return
                log.error("message %s is settled as %s: %s", id, other["outcome"], error)
                ended = other
            else:
                level = logging.WARNING if state in ("dead", "parked") else logging.DEBUG
                log.log(level, "message %s is %s after %s", id, state, ended["outcome"])
                return

    async def _drain(self) -> Drained:
        at_stop, self._released = len(self._tasks), 0
        log.info("worker %s drains", self._worker.name)
        await self._wait_for_tasks(self._worker._drain)
        self._keepalive.stop_all(Stopped.DRAINED)
        await self._wait_for_tasks(_GRACE)
        abandoned = len(self._tasks)
        if abandoned:
            log.warning("worker %s: %d handlers did not end; their messages come back", self._worker.name, abandoned)
        log.info("worker %s stopped", self._worker.name)
        return Drained(at_stop - abandoned - self._released, self._released, abandoned)

    async def _wait_for_tasks(self, within: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)

    def _from_any_thread(self, tell: Callable[[], Any]) -> None:
        # The loop is closed when a handler ends that was abandoned.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(tell)

    def _poke(self) -> None:
        """Something changed that somebody may wait for."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._changed.wait()


def _decoded(handler: _Registered, lease: Lease) -> Any:
    payload = lease.message.payload
    return payload if handler.decode is None else handler.decode(payload, lease.message.version)


def _instead(error: TidegateError, ended: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is settled where the server refused what was to follow, and stored nothing."""
    if not isinstance(error, Problem) or not (ended.get("then") or ended.get("compensate")):
        return None
    journal = {"journal": ended["journal"]} if "journal" in ended else {}
    why = {"detail": str(error)[:1000], **journal}
    if error.status == 400:
        return {"outcome": "refused", "code": "follow_up", **why}
    if error.status == 403:
        return {"outcome": "retryable", "code": "follow_up", **why}
    if error.status == 429:
        # Nothing is wrong with the message: it comes again, uncounted, when there is room.
        return {"outcome": "not_done", "code": error.slug, "after_ms": ms(error.retry_after or 1.0), **why}
    return None
