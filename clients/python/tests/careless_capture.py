"""A capture worker as many are: it calls the gateway and tells it afterwards. For a test that the audit finds what it does."""

from __future__ import annotations

import os
import secrets
import threading
from typing import Any

import httpx

from tidegate import Context, Policy, Worker


def main() -> None:
    gateway = httpx.Client(base_url=os.environ["GATEWAY_URL"], timeout=0.4, verify=False, trust_env=False)
    worker = Worker(os.environ["TIDEGATE_URL"], token=os.environ["TIDEGATE_TOKEN"], name=os.environ["WORKER_NAME"], lease=1)

    @worker.handle("capture", policy=Policy(max_attempts=20, backoff=(0.03, 0.3), timeout=10))
    def capture(ctx: Context, deposit: Any) -> Any:
        # No effect: whoever runs it again knows nothing of the call before.
        answer = gateway.post("/capture", json=deposit, headers={"Idempotency-Key": secrets.token_hex(8)})
        ctx.then("credit", deposit)
        return {"reference": answer.raise_for_status().json()["reference"]}

    def stop_with_input() -> None:
        while os.read(0, 1024):
            pass
        worker.stop()

    threading.Thread(target=stop_with_input, daemon=True).start()
    print("working", flush=True)
    worker.run()


if __name__ == "__main__":
    main()
