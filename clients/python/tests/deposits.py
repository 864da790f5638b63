"""The life of a deposit, validate → capture → credit, as a worker: a program of its own, so that it can be killed.

    python -m tests.deposits SERVER GATEWAY [LEASE [DRAIN]]

The capture blocks, at a gateway that may recognise keys; the credit awaits, at one that can only be asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import httpx

from tidegate import AsyncContext, Context, Fail, Keyed, Lookup, NotFound, Policy, Worker, http

#: Patient with whoever kills it: each kill of a run that was alone counts.
PATIENT = Policy(max_attempts=50, backoff=(0.05, 0.5), timeout=30, crash_limit=50)
#: How long a reply of the gateway may take, how long a send, and how late a request of ours may take effect.
TIMEOUT = float(os.environ.get("TIMEOUT", "0.4"))
SEND_WITHIN, QUARANTINE = 2 * TIMEOUT, 0.2

#: Whether what waits to be stopped does not wait.
GOES_ON = "GOES_ON" in os.environ


def found(answer: httpx.Response) -> Any:
    if answer.status_code == 404 and answer.json().get("code") == "not_found":
        raise NotFound
    return answer.raise_for_status().json()["reference"]


def main(server: str, gateway: str, lease: str = "2", drain: str = "30") -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    worker = Worker(server, lease=float(lease), drain=float(drain), concurrency=4)
    blocking = httpx.Client(base_url=gateway, timeout=TIMEOUT, verify=False)

    def tell(word: str) -> None:
        blocking.post("/told", content=f"{word} {os.getpid()}", timeout=30)

    @worker.handle("validate", policy=PATIENT)
    def validate(ctx: Context, deposit: Any) -> str:
        if deposit["cents"] <= 0:
            raise Fail("amount", f"{deposit['cents']} cents")
        ctx.then("capture", deposit)
        return "valid"

    @worker.handle("capture", policy=PATIENT)
    def capture(ctx: Context, deposit: Any) -> Any:
        def send(key: str) -> Any:
            headers = {"Idempotency-Key": key}
            return http.send(blocking, "POST", "/capture", json=deposit, headers=headers).json()["reference"]

        def find(key: str) -> Any:
            return found(blocking.get("/find", params={"operation": "capture", "key": key}))

        policy = Keyed(window=86_400, quarantine=QUARANTINE)
        charge = ctx.effect("capture", policy=policy, send=send, look_up=find, send_within=SEND_WITHIN)
        ctx.then("credit", {**deposit, "charge": charge})
        return charge

    @worker.handle("credit", policy=PATIENT)
    async def credit(ctx: AsyncContext, deposit: Any) -> Any:
        body = {"deposit": deposit["deposit"], "cents": deposit["cents"]}
        async with httpx.AsyncClient(base_url=gateway, timeout=TIMEOUT, verify=False) as awaiting:

            async def send(key: str) -> Any:
                headers = {"Idempotency-Key": key}
                return (await http.asend(awaiting, "POST", "/credit", json=body, headers=headers)).json()["reference"]

            async def find(key: str) -> Any:
                return found(await awaiting.get("/find", params={"operation": "credit", "key": key}))

            policy = Lookup(quarantine=QUARANTINE)
            return await ctx.effect("credit", policy=policy, send=send, look_up=find, send_within=SEND_WITHIN)

    @worker.handle("blocks", policy=PATIENT)
    def blocks(ctx: Context, deposit: Any) -> Any:
        """Tells that it began, waits until it should stop, and goes on all the same."""
        tell("began")
        while ctx.stopping is None and not GOES_ON:
            time.sleep(0.02)
        tell(f"goes on: {ctx.stopping}")

        def send(key: str) -> Any:
            headers = {"Idempotency-Key": key}
            return http.send(blocking, "POST", "/charge", json=deposit, headers=headers).json()["reference"]

        return ctx.effect("charge", policy=Keyed(window=timedelta(days=4)), send=send)

    @worker.handle("awaits", policy=PATIENT)
    async def awaits(ctx: AsyncContext, deposit: Any) -> Any:
        """Tells that it began, and that it was cancelled."""
        try:
            await asyncio.to_thread(tell, "began")
            if not GOES_ON:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            threading.Thread(target=tell, args=(f"cancelled: {ctx.stopping}",)).start()
            raise
        return "done"

    drained = worker.run()
    print(drained, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
