"""The capture step of a deposit, as a worker: it takes money at a payment gateway, once.

    TIDEGATE_URL=http://127.0.0.1:7401 TIDEGATE_TOKEN=… GATEWAY_URL=http://127.0.0.1:7001 python3 capture.py

It does what the step in Rust does (examples/deposits/src/steps), so that `deposits work --without capture` can leave the
captures to it, and `tidegate torture --capture-with 'python3 capture.py'` can kill it. Start reading at `capture`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta

import httpx

from tidegate import AtMostOnce, Context, EffectPolicy, Keyed, Lookup, NotFound, Policy, Rejected, Worker, http

#: What the gateway confirmed: its own name for it, `{"reference": "capture-17"}`.
Done = dict[str, str]


@dataclass(frozen=True)
class Deposit:
    """What is captured, as the message and the gateway have it."""

    deposit: str
    account: str
    cents: int
    card: str = "ok"


@dataclass(frozen=True)
class Gateway:
    """The payment gateway: one call, one answer, no retry. Whoever reads an answer too hopefully here charges twice."""

    client: httpx.Client

    def capture(self, key: str, deposit: Deposit) -> Done:
        """Takes the money. Any exception but `Rejected` and `NotDone` means that nobody knows whether it did."""
        headers = {"Idempotency-Key": key}
        answer = http.answered(self.client, "POST", "/capture", json=asdict(deposit), headers=headers)
        if answer.status_code == 402:
            # A "no" about the card, if the gateway says so in its own words. Without its code nobody knows who answered.
            refusal = answer.json()
            raise Rejected(refusal["code"], refusal.get("message", ""))
        return {"reference": http.judged(answer).json()["reference"]}

    def find(self, key: str) -> Done:
        """Asks whether the money was taken under this key. Any exception but these two says nothing of it."""
        answer = self.client.get("/find", params={"operation": "capture", "key": key})
        # Any proxy answers 404: it is believed only with the code that means it.
        if answer.status_code == 404 and answer.json()["code"] == "not_found":
            raise NotFound
        entry = answer.raise_for_status().json()
        if entry["result"] == "declined":
            raise Rejected("card_declined", f"entry {entry['seq']} says so")
        return {"reference": f"{entry['operation']}-{entry['seq']}"}


def policy_of(mode: str, quarantine: timedelta) -> EffectPolicy:
    """What may be done when an answer is missing: as much as the gateway's promise about a repeated call allows. No call of
    ours takes the money later than `quarantine` after it could have left."""
    policies: dict[str, EffectPolicy] = {
        # It recognises a key for a day: the same key again takes the money once. After that day it is asked.
        "idempotent": Keyed(window=timedelta(days=1), quarantine=quarantine),
        # Every call takes the money, and it can be asked: so it is asked before it is called again.
        "lookup": Lookup(quarantine=quarantine),
        # Neither: it is called once, and a missing answer waits for a person.
        "none": AtMostOnce(quarantine=quarantine),
    }
    return policies[mode]


@dataclass(frozen=True)
class Settings:
    """How the worker is started: by its environment, which not everybody can read as a command line is."""

    server: str
    token: str | None = field(repr=False)
    gateway: str
    #: What the gateway promises: idempotent, lookup or none.
    mode: str
    name: str
    #: Captures at once.
    concurrency: int
    lease: timedelta
    #: How long the gateway may take. Shorter than the lease, so that it is this code that sees "nobody knows".
    call_timeout: timedelta
    quarantine: timedelta
    #: The first pause between attempts, and the longest.
    backoff: tuple[timedelta, timedelta]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """What is not said is as in `deposits work`."""

        def ms(name: str, otherwise: int) -> timedelta:
            return timedelta(milliseconds=int(environment.get(name, otherwise)))

        return cls(
            server=environment["TIDEGATE_URL"],
            token=environment.get("TIDEGATE_TOKEN"),
            gateway=environment["GATEWAY_URL"],
            mode=environment.get("GATEWAY_MODE", "idempotent"),
            name=environment.get("WORKER_NAME", f"capture-{os.getpid()}"),
            concurrency=int(environment.get("CONCURRENCY", 14)),
            lease=ms("LEASE_MS", 5_000),
            call_timeout=ms("CALL_TIMEOUT_MS", 2_000),
            quarantine=ms("QUARANTINE_MS", 6_500),
            backoff=(ms("BACKOFF_FIRST_MS", 200), ms("BACKOFF_GREATEST_MS", 2_000)),
        )


def worker_of(settings: Settings, gateway: Gateway) -> Worker:
    """The worker, with its one handler."""
    effect_policy = policy_of(settings.mode, settings.quarantine)
    look_up = None if isinstance(effect_policy, AtMostOnce) else gateway.find
    worker = Worker(
        settings.server,
        token=settings.token,
        name=settings.name,
        concurrency=settings.concurrency,
        lease=settings.lease,
        drain=settings.call_timeout * 2,
    )
    policy = Policy(
        # An outage is not counted, so the attempts are for what is wrong with a deposit itself.
        max_attempts=20,
        backoff=settings.backoff,
        # A call, or a look-up and a call, with room for a slow store.
        timeout=settings.call_timeout * 2 + timedelta(seconds=10),
        crash_limit=3,
    )

    @worker.handle("capture", policy=policy, decode=lambda payload, version: Deposit(**payload))
    def capture(ctx: Context, deposit: Deposit) -> Done:
        done = ctx.effect(
            "capture",
            policy=effect_policy,
            send=lambda key: gateway.capture(key, deposit),
            look_up=look_up,
            # Longer than the client's own time-out, so that the client says what it saw.
            send_within=settings.call_timeout * 1.1,
        )
        # In the same commit as the completion: both are there, or neither.
        ctx.then("credit", asdict(deposit))
        return done

    return worker


def main() -> None:
    """Works until SIGTERM; with `STOP_WITH_STDIN`, until its standard input ends as well: then it outlives no parent."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    settings = Settings.read(os.environ)
    timeout = settings.call_timeout.total_seconds()
    # Plain HTTP on this machine: there are no certificates to load, and no proxy to ask.
    client = httpx.Client(base_url=settings.gateway, timeout=timeout, verify=False, trust_env=False)
    worker = worker_of(settings, Gateway(client))

    def stop_with_input() -> None:
        # Below Python's own buffer, whose lock this thread would hold for ever when the interpreter ends.
        while os.read(0, 1024):
            pass
        worker.stop()

    if "STOP_WITH_STDIN" in os.environ:
        threading.Thread(target=stop_with_input, daemon=True).start()
    print("working", settings.name, flush=True)
    drained = worker.run()
    print("drained", drained.finished, drained.released, drained.abandoned, flush=True)


if __name__ == "__main__":
    main()
