"""What schemathesis does before each request: it does not wait for a minute because the document allows it."""

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    body = case.body
    wait = body.get("wait_ms") if isinstance(body, dict) else None
    if isinstance(wait, int) and 100 < wait <= 60_000:
        case.body = {**body, "wait_ms": 100}
