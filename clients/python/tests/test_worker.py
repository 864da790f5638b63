"""The worker against the real server, and a gateway whose ledger is the truth: killed, stopped, cut off, drained."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tidegate import (
    AsyncContext,
    AtMostOnce,
    Client,
    Context,
    EffectPolicy,
    Fail,
    Forbidden,
    Keyed,
    Lookup,
    Message,
    NewMessage,
    NotFound,
    Policy,
    Retry,
    Snooze,
    Worker,
    http,
)

from .conftest import RealServer
from .gateway import Gateway, running
from .proxy import Proxy

SOON = Policy(max_attempts=5, backoff=(0.01, 0.1), timeout=30)
#: What a worker says at its end that handed back nothing. What was settled as it was told to stop may be counted as finished.
NOTHING_LEFT = re.compile(r"Drained\(finished=\d+, released=0, abandoned=0\)")


class Program:
    """`tests/deposits.py` as a process."""

    def __init__(self, server: str, gateway: Gateway, log: Path, *, lease: float = 1.0, drain: float = 30.0, **env: str) -> None:
        command = [sys.executable, "-m", "tests.deposits", server, gateway.url, str(lease), str(drain)]
        root = Path(__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONUNBUFFERED": "1", **env}
        self.log = log
        with log.open("a") as out:
            self.process = subprocess.Popen(command, cwd=root, env=environment, stdout=out, stderr=out)

    def signal(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    def kill(self) -> None:
        """As the kernel does it: no goodbye."""
        self.process.kill()
        self.process.wait(30)

    def drain(self, meanwhile: Callable[[], None] | None = None) -> str:
        """SIGTERM, and what is to happen while it drains; what it said at its end."""
        self.signal(signal.SIGTERM)
        if meanwhile is not None:
            until(lambda: " drains" in self.log.read_text())
            meanwhile()
        assert self.process.wait(30) == 0, self.log.read_text()
        return self.log.read_text().splitlines()[-1]


@contextmanager
def programs(directory: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs, and leaves none behind."""
    started: list[Program] = []

    def start(server: str, gateway: Gateway, **options: Any) -> Program:
        started.append(Program(server, gateway, directory / f"worker-{len(started)}.log", **options))
        return started[-1]

    try:
        yield start
    finally:
        for program in started:
            program.kill()


@contextmanager
def working(worker: Worker) -> Iterator[Worker]:
    """Runs a worker on a thread of this process, and drains it."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive() and not failed, failed


def ended(tide: Client, id: str, within: float = 30.0) -> Message:
    message = tide.wait(id, timeout=within)
    assert message.state in ("completed", "failed", "dead", "parked"), message
    return message


def deposit(number: int) -> dict[str, Any]:
    return {"deposit": f"dep-{number}", "cents": 100 + number}


def test_what_is_enqueued_is_run_and_what_the_handler_made_of_it_is_told(server: RealServer) -> None:
    worker = Worker(server.url)
    snoozed: list[int] = []

    @worker.handle("greet")
    def greet(ctx: Context, payload: Any) -> Any:
        ctx.then("shout", {"text": f"hello {payload['name']}"}, queue="loud")
        return {"hello": payload["name"]}

    @worker.handle("shout", queue="loud")
    async def shout(ctx: AsyncContext, payload: Any) -> str:
        assert ctx.message.parent is not None and ctx.message.flow == ctx.message.parent
        return str(payload["text"]).upper()

    @worker.handle("moody", policy=SOON, decode=lambda payload, version: payload["do"])
    def moody(ctx: Context, do: str) -> str:
        if do == "fail":
            ctx.compensate("shout", {"text": "sorry"}, queue="loud")
            raise Fail("sad", "so it is")
        if do == "snooze" and not snoozed:
            snoozed.append(ctx.attempt)
            raise Snooze(0.01)
        if do == "retry" and ctx.attempt < 3:
            raise Retry("busy", "later", after=0.01)
        if do == "raise":
            raise OSError("disk")
        return f"{do} {ctx.attempt}"

    with Client(server.url) as tide, working(worker):
        sent = tide.enqueue("greet", {"name": "Ada"}, key="ada")
        assert ended(tide, sent.id).answer == tide.find("greet", "ada").answer
        flow = tide.flow(sent.id, timeout=30)
        assert flow.completed and [one.queue for one in flow.messages] == ["greet", "loud"]
        told = [tide.get(one.id, reveal=True).answer for one in flow.messages]
        assert [answer.result for answer in told if answer] == [{"hello": "Ada"}, "HELLO ADA"]
        came: dict[str, Message] = {}
        for do in ("fail", "snooze", "retry", "raise"):
            came[do] = ended(tide, tide.enqueue("moody", {"do": do}, key=do).id)
        came["else"] = ended(tide, tide.enqueue("moody", {"else": 1}, key="else").id)
        states = {do: (message.state, message.reason, message.attempt) for do, message in came.items()}
        assert states == {
            "fail": ("failed", None, 1),
            "snooze": ("completed", None, 1),
            "retry": ("completed", None, 3),
            "raise": ("dead", "exhausted", 5),
            "else": ("dead", "decode", 1),
        }
        compensation = tide.flow(came["fail"].id, timeout=30)
        assert [one.state for one in compensation.messages] == ["failed", "completed"]


def test_no_more_runs_at_once_than_a_queue_allows_and_a_busy_queue_delays_no_other(server: RealServer) -> None:
    worker = Worker(server.url, queues={"slow": 2}, concurrency=3)
    lock, go_on = threading.Lock(), threading.Event()
    now, most = 0, 0

    @worker.handle("slow")
    def slow(ctx: Context, payload: Any) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        assert go_on.wait(30)
        with lock:
            now -= 1

    @worker.handle("quick")
    async def quick(ctx: AsyncContext, payload: Any) -> None:
        pass

    with Client(server.url) as tide, working(worker):
        tide.enqueue_many([NewMessage("slow", number, f"s-{number}") for number in range(6)])
        first = [tide.enqueue("quick", number, key=f"q-{number}") for number in range(3)]
        assert [ended(tide, sent.id).state for sent in first] == ["completed"] * 3
        go_on.set()
        for number in range(6):
            ended(tide, tide.find("slow", f"s-{number}").id)
    assert most == 2


def paying(url: str, gateway: Gateway, policy: EffectPolicy, *, timeout: float) -> Worker:
    """A worker that makes one effect, and asks about it if it may."""
    worker = Worker(url)
    client = httpx.Client(base_url=gateway.url, timeout=timeout)

    @worker.handle("pay", policy=SOON)
    def pay(ctx: Context, payload: Any) -> Any:
        def send(key: str) -> Any:
            return http.send(client, "POST", "/pay", json=payload, headers={"Idempotency-Key": key}).json()["reference"]

        def find(key: str) -> Any:
            answer = client.get("/find", params={"operation": "pay", "key": key})
            if answer.status_code == 404:
                raise NotFound
            return answer.raise_for_status().json()["reference"]

        look_up = None if isinstance(policy, AtMostOnce) else find
        return ctx.effect("pay", policy=policy, send=send, look_up=look_up, send_within=1)

    return worker


@pytest.mark.parametrize(
    ("recognises_keys", "policy", "state", "asked"),
    [
        (True, Keyed(window=60), "completed", 2),
        (False, Lookup(quarantine=0.2), "completed", 1),
        (False, AtMostOnce(), "parked", 1),
    ],
)
def test_a_time_out_after_the_gateway_charged_charges_once(
    server: RealServer, recognises_keys: bool, policy: EffectPolicy, state: str, asked: int
) -> None:
    late = Gateway(recognises_keys=recognises_keys, fault=lambda operation, key, nth: "" if nth else "late")
    with running(late) as gateway, Client(server.url) as tide, working(paying(server.url, gateway, policy, timeout=0.3)):
        message = ended(tide, tide.enqueue("pay", deposit(1), key="dep-1").id)
        assert (message.state, len(gateway.ledger)) == (state, 1), message
        assert sum(gateway.asked.values()) == asked


def test_a_gateway_that_is_busy_costs_no_attempt_and_a_refusal_is_the_answer(server: RealServer) -> None:
    busy = Gateway(recognises_keys=True, fault=lambda operation, key, nth: "busy" if nth < 3 else "")
    with running(busy) as gateway, Client(server.url) as tide, working(paying(server.url, gateway, Keyed(60), timeout=5)):
        message = ended(tide, tide.enqueue("pay", deposit(1), key="dep-1").id)
        assert (message.state, message.attempt, len(gateway.ledger)) == ("completed", 1, 1)


@pytest.mark.parametrize("recognises_keys", [True, False])
def test_a_worker_killed_in_the_middle_of_an_effect_leaves_it_to_the_next_which_charges_once(
    server: RealServer, tmp_path: Path, recognises_keys: bool
) -> None:
    kind, operation = ("capture", "capture") if recognises_keys else ("credit", "credit")
    stuck = Gateway(recognises_keys=recognises_keys, fault=lambda operation, key, nth: "" if nth else "late")
    with running(stuck) as gateway, Client(server.url) as tide, programs(tmp_path) as start:
        sent = tide.enqueue(kind, deposit(1), key="dep-1")
        first = start(server.url, gateway)
        gateway.wait()
        # It charged, and the worker is dead before it could know.
        first.kill()
        start(server.url, gateway)
        assert ended(tide, sent.id).state == "completed"
        assert len(gateway.of("dep-1", operation)) == 1
        effect = tide.get(sent.id).journal[0]
        assert (effect["state"], gateway.asked[(operation, effect["key"])]) == ("confirmed", 2 if recognises_keys else 1)


@pytest.mark.parametrize("kind", ["blocks", "awaits"])
def test_a_handler_whose_lease_was_lost_is_told_and_makes_no_effect_any_more(
    server: RealServer, tmp_path: Path, kind: str
) -> None:
    with running(Gateway(recognises_keys=True)) as gateway, Client(server.url) as tide, programs(tmp_path) as start:
        sent = tide.enqueue(kind, deposit(1), key="dep-1")
        first = start(server.url, gateway)
        gateway.wait()
        first.signal(signal.SIGSTOP)
        start(server.url, gateway, GOES_ON="1")
        done = ended(tide, sent.id)
        assert done.state == "completed"
        told = len(gateway.told)
        first.signal(signal.SIGCONT)
        while len(gateway.told) == told:
            gateway.wait()
        assert re.match("goes on: .*lease|cancelled: .*lease|.*somebody else", gateway.told[-1]), gateway.told
        first.drain()
        assert len(gateway.ledger) == (kind == "blocks")
        assert tide.get(sent.id).answer == done.answer


def test_lost_replies_of_the_server_repeat_no_effect_and_lose_nothing(server: RealServer) -> None:
    dice = random.Random(7)
    with running(Gateway(recognises_keys=False)) as gateway, Client(server.url) as tide, ExitStack() as open:
        # Of every three replies one is dropped after the server has done what it was asked.
        proxy = open.enter_context(Proxy(server.url, lose=lambda path, body: dice.random() < 0.3))
        worker = paying(proxy.url, gateway, Lookup(quarantine=0.2), timeout=5)
        sent = [tide.enqueue("pay", deposit(number), key=f"dep-{number}") for number in range(12)]
        open.enter_context(working(worker))
        assert [ended(tide, one.id).state for one in sent] == ["completed"] * 12
        assert sorted(entry.deposit for entry in gateway.ledger) == sorted(f"dep-{number}" for number in range(12))
        assert proxy.lost > 10


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_restarted_costs_a_worker_nothing(server: RealServer, how: signal.Signals) -> None:
    worker = Worker(server.url, concurrency=4)
    began, go_on = threading.Semaphore(0), threading.Event()

    @worker.handle("pay", policy=SOON)
    def pay(ctx: Context, payload: Any) -> Any:
        began.release()
        assert go_on.wait(30)
        return ctx.effect("pay", policy=AtMostOnce(), send=lambda key: payload)

    with Client(server.url) as tide, working(worker):
        sent = [tide.enqueue("pay", number, key=f"dep-{number}") for number in range(8)]
        for _ in range(4):
            assert began.acquire(timeout=30)
        server.end(how)
        # They reach their effects while nobody listens.
        go_on.set()
        starting = threading.Timer(0.5, server.start)
        starting.start()
        messages = [ended(tide, one.id) for one in sent]
        starting.join()
        assert [(message.state, message.attempt) for message in messages] == [("completed", 1)] * 8


def test_sigterm_finishes_what_it_can_hands_back_the_rest_and_counts_no_attempt(server: RealServer, tmp_path: Path) -> None:
    late = Gateway(recognises_keys=True, fault=lambda operation, key, nth: "late")
    with running(late) as gateway, Client(server.url) as tide, programs(tmp_path) as start:
        # It stops what still runs after three seconds: a capture that is answered by then, and an `awaits` that never ends.
        first = start(server.url, gateway, drain=3, lease=20, TIMEOUT="5")
        never = tide.enqueue("awaits", deposit(1), key="dep-1")
        gateway.wait()
        assert gateway.told[0].startswith("began")
        quick = tide.enqueue("capture", deposit(2), key="dep-2")
        gateway.wait()
        said = first.drain(gateway.let_go.set)
        assert said == "Drained(finished=1, released=1, abandoned=0)", first.log.read_text()
        assert tide.get(quick.id).state == "completed"
        message = tide.get(never.id)
        assert (message.state, message.attempt) == ("ready", 0), "it was handed back, and not left to lapse"
        start(server.url, gateway, GOES_ON="1")
        assert ended(tide, never.id).attempt == 1


def test_an_idle_worker_ends_at_once(server: RealServer, tmp_path: Path) -> None:
    with running(Gateway(recognises_keys=True)) as gateway, Client(server.url) as tide, programs(tmp_path) as start:
        program = start(server.url, gateway, lease=30)
        # It claims, and waits at the server for ten seconds.
        sent = tide.enqueue("validate", deposit(1), key="dep-1")
        assert ended(tide, sent.id).state == "completed"
        assert tide.flow(sent.id, timeout=30).completed
        began = time.monotonic()
        assert NOTHING_LEFT.fullmatch(program.drain())
        assert time.monotonic() - began < 5.0


def test_what_was_handed_out_while_a_worker_stopped_is_handed_back(server: RealServer) -> None:
    handed_out, go_on = threading.Event(), threading.Event()

    def hold(path: str, body: bytes) -> bool:
        if path != "/v1/leases" or b'"token"' not in body or handed_out.is_set():
            return False
        handed_out.set()
        return go_on.wait(30)

    with Client(server.url) as tide, Proxy(server.url, lose=hold) as proxy:
        worker = Worker(proxy.url)
        worker.handle("pay")(lambda ctx, payload: payload)
        with working(worker):
            sent = tide.enqueue("pay", 1, key="k")
            assert handed_out.wait(30)
            assert tide.get(sent.id).state == "leased"
        go_on.set()
        message = tide.get(sent.id)
        assert (message.state, message.attempt) == ("ready", 0)


def test_a_message_whose_run_crashed_runs_alone_in_its_process(server: RealServer) -> None:
    worker = Worker(server.url)
    lock = threading.Lock()
    running_now: set[Any] = set()
    beside: list[int] = []

    @worker.handle("pay")
    def pay(ctx: Context, payload: Any) -> None:
        with lock:
            running_now.add(payload)
            if "suspect" in running_now:
                beside.append(len(running_now) - 1)
        time.sleep(0.1)
        with lock:
            running_now.discard(payload)

    with Client(server.url) as tide:
        suspect = tide.enqueue("pay", "suspect", key="suspect")
        claim = {"worker": "crashed", "queues": {"pay": 1}, "kinds": {"pay": 1}, "nonce": "ab" * 16, "lease_ms": 100}
        leases = httpx.post(f"{server.url}/v1/leases", json=claim).json()["leases"]
        assert [lease["message"]["id"] for lease in leases] == [suspect.id]
        until(lambda: tide.get(suspect.id).state == "ready")
        others = [tide.enqueue("pay", number, key=f"k-{number}") for number in range(6)]
        with working(worker):
            assert [ended(tide, sent.id).state for sent in (suspect, *others)] == ["completed"] * 7
    assert beside == [0]


def test_a_handler_that_blocks_everything_keeps_its_lease(server: RealServer) -> None:
    worker = Worker(server.url, lease=4)

    @worker.handle("pay", policy=SOON)
    async def pay(ctx: AsyncContext, payload: Any) -> int:
        # Not how it is done: the whole event loop waits.
        time.sleep(10)
        return ctx.attempt

    with Client(server.url) as tide, working(worker):
        message = ended(tide, tide.enqueue("pay", 1, key="k").id)
        assert (message.state, message.attempt, message.history) == ("completed", 1, ())


def test_a_cancel_request_is_told_and_lets_no_effect_begin(server: RealServer) -> None:
    worker = Worker(server.url, lease=2)
    began = threading.Event()

    @worker.handle("pay", policy=SOON)
    def pay(ctx: Context, payload: Any) -> Any:
        began.set()
        until(lambda: ctx.cancel_requested)
        return ctx.effect("pay", policy=AtMostOnce(), send=lambda key: key)

    with Client(server.url) as tide, working(worker):
        sent = tide.enqueue("pay", 1, key="k")
        assert began.wait(30)
        server.command("cancel", sent.id, "--reason", "a test")
        message = tide.wait(sent.id, timeout=30)
        assert (message.state, message.journal) == ("cancelled", ())


def test_what_may_not_follow_is_told_and_repeats_no_effect(tmp_path: Path) -> None:
    server = RealServer(tmp_path, "--require-tokens").start()
    sent_keys: list[str] = []
    try:
        scopes = ("--scope", "work:pay", "--scope", "produce:pay", "--scope", "read:pay")
        token = re.findall(r'"token": *"([^"]+)"', server.command("token", "create", "w", *scopes, "--json"))[0]
        worker = Worker(server.url, token=token)

        @worker.handle("pay", policy=Policy(max_attempts=2, backoff=(0.01, 0.01)))
        def pay(ctx: Context, payload: Any) -> None:
            ctx.effect("pay", policy=AtMostOnce(), send=sent_keys.append)
            ctx.then("credit", payload)

        with Client(server.url, token=token) as tide, working(worker):
            message = ended(tide, tide.enqueue("pay", 1, key="k").id)
            assert (message.state, message.attempt, message.history[-1]["code"]) == ("dead", 2, "follow_up"), message
            assert len(sent_keys) == 1
    finally:
        server.end(signal.SIGKILL)


def until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < give_up_at, "it never came to that"
        time.sleep(0.02)


def test_a_handler_that_takes_too_long_is_stopped_and_tried_again(server: RealServer) -> None:
    worker = Worker(server.url)
    seen: list[str | None] = []

    @worker.handle("blocks", policy=Policy(max_attempts=2, backoff=(0.01, 0.01), timeout=0.2))
    def blocks(ctx: Context, payload: Any) -> Any:
        while ctx.stopping is None:
            time.sleep(0.01)
        seen.append(ctx.stopping)
        return ctx.effect("never", policy=AtMostOnce(), send=lambda key: key)

    @worker.handle("awaits", policy=Policy(max_attempts=2, backoff=(0.01, 0.01), timeout=0.2))
    async def awaits(ctx: AsyncContext, payload: Any) -> Any:
        await asyncio.Event().wait()

    with Client(server.url) as tide, working(worker):
        for kind in ("blocks", "awaits"):
            message = ended(tide, tide.enqueue(kind, None, key="k").id)
            assert (message.state, message.attempt, message.history[-1]["code"]) == ("dead", 2, "timeout"), message
            assert message.journal == ()
    assert seen == ["the handler did not end in time"] * 2


def test_a_worker_whose_token_does_not_open_its_queue_says_so_at_once(tmp_path: Path) -> None:
    server = RealServer(tmp_path, "--require-tokens").start()
    try:
        token = server.command("token", "create", "w", "--scope", "work:other", "--json")
        worker = Worker(server.url, token=re.findall(r'"token": *"([^"]+)"', token)[0])
        worker.handle("pay")(lambda ctx, payload: None)
        with pytest.raises(Forbidden):
            worker.run()
    finally:
        server.end(signal.SIGKILL)


def test_a_worker_that_may_not_say_what_its_kind_allows_says_so_and_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RealServer(tmp_path, "--require-tokens").start()
    try:
        scopes = ("--scope", "work:pay", "--scope", "produce", "--scope", "read:pay")
        token = re.findall(r'"token": *"([^"]+)"', server.command("token", "create", "w", *scopes, "--json"))[0]
        worker = Worker(server.url, token=token)
        worker.handle("pay", policy=SOON)(lambda ctx, payload: payload)
        with Client(server.url, token=token) as tide:
            # The kind is in a queue as well that is none of this worker's.
            tide.enqueue("pay", 1, key="k", queue="elsewhere")
            with working(worker):
                assert ended(tide, tide.enqueue("pay", 2, key="k").id).state == "completed"
        assert "the policy of kind pay stays as it is: 403" in caplog.text
    finally:
        server.end(signal.SIGKILL)


def test_what_cannot_work_is_told_when_it_is_written() -> None:
    worker = Worker("http://127.0.0.1:1", queues={"pay": 0})
    with pytest.raises(ValueError, match="without a handler"):
        worker.run()
    worker.handle("pay")(lambda ctx, payload: None)
    with pytest.raises(ValueError, match="two handlers for kind pay"):
        worker.handle("pay")(lambda ctx, payload: None)
    with pytest.raises(ValueError, match="concurrency of 0 for queue pay"):
        worker.run()


@pytest.mark.timeout(120)
def test_deposits_survive_kills_lost_replies_and_a_restarted_server_and_the_ledger_balances(
    server: RealServer, tmp_path: Path
) -> None:
    dice = random.Random(20)

    def fault(operation: str, key: str, nth: int) -> str:
        # The capture's gateway recognises keys; the credit's does not, and every second send would be another credit.
        return dice.choice(["", "", "", "", "lost", "busy"]) if nth < 4 else ""

    captures, credits = Gateway(recognises_keys=True, fault=fault), Gateway(recognises_keys=False, fault=fault)
    both = Both(captures, credits)
    count, kills = 30, 5
    with running(both) as gateway, Client(server.url) as tide, programs(tmp_path) as start:
        sent = [tide.enqueue("validate", deposit(number), key=f"dep-{number}") for number in range(count)]
        workers = [start(server.url, gateway), start(server.url, gateway)]
        for nth in range(kills):
            for _ in range(dice.randint(4, 10)):
                gateway.wait()
            victim = dice.randrange(2)
            workers[victim].kill()
            workers[victim] = start(server.url, gateway)
            if nth == kills // 2:
                server.end(signal.SIGKILL)
                server.start()
        flows = [tide.flow(one.id, timeout=60) for one in sent]
        assert [flow.completed for flow in flows] == [True] * count, [flow for flow in flows if not flow.completed]
        expected = {(f"dep-{number}", 100 + number) for number in range(count)}
        for ledger in (captures.ledger, credits.ledger):
            assert {(entry.deposit, entry.cents) for entry in ledger} == expected, "none is lost"
            assert len(ledger) == count, "none is double"
        said = [worker.drain() for worker in workers]
        assert all(NOTHING_LEFT.fullmatch(word) for word in said), said


class Both(Gateway):
    """Two gateways behind one address."""

    def __init__(self, captures: Gateway, credits: Gateway) -> None:
        super().__init__(recognises_keys=True)
        self._of = {"capture": captures, "credit": credits}

    def operate(self, operation: str, key: str, deposit: str, cents: int) -> Any:
        fault, entry = self._of[operation].operate(operation, key, deposit, cents)
        if entry is not None:
            self.happened.release()
        return fault, entry

    def find(self, operation: str, key: str) -> Any:
        return self._of[operation].find(operation, key)

    def number(self, entry: Any) -> int:
        return self._of[entry.operation].number(entry)
