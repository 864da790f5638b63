"""A request until its answer: repeated where that is safe, given up where it is not. No I/O."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

from .errors import Problem, TidegateError, Unreachable, problem_of
from .steps import Env, NoReply, Reply, Request, Steps, pause, send


def exchange(env: Env, request: Request, *, within: float | None = None) -> Steps[Reply]:
    """The reply to a request, if it is no error.

    A repeatable request is sent again after what may pass: no reply, 429, 503. One that is not is sent again only if it
    certainly never left. Nothing is begun again after ``within`` seconds (the environment's, unless given), nor if the
    server asks for a longer pause than is left: then the error says so and the caller can come back.
    """
    give_up_at = env.clock() + (env.retries.within if within is None else within)
    #: Of a try that got no reply nobody knows, and no later one takes that back.
    left = False
    for attempt in itertools.count(1):
        error: TidegateError
        try:
            reply = yield from send(request)
        except NoReply as no_reply:
            left = left or no_reply.left
            error = Unreachable(f"{request.method} {request.path}: {no_reply}", maybe_done=left)
            may_repeat = request.repeatable or not no_reply.left
        else:
            if reply.status < 300:
                return reply
            error = problem_of(reply)
            if left and request.method != "GET":
                error.after_no_reply()
            may_repeat = request.repeatable and error.retryable
        delay = env.retries.pause(attempt, error.retry_after or 0.0, env.unit())
        if not may_repeat or env.clock() + delay >= give_up_at:
            raise error
        yield from pause(delay)
        if request.again is not None:
            request = replace(request, body=request.again())
    raise AssertionError("unreachable: the loop ends by return or raise")


def exchange_json(env: Env, request: Request, *, within: float | None = None) -> Steps[Any]:
    """The JSON body of the reply."""
    reply = yield from exchange(env, request, within=within)
    return decoded(reply)


def decoded(reply: Reply) -> Any:
    """The body of a reply as JSON."""
    try:
        return json.loads(reply.body)
    except ValueError as error:
        said = {"title": f"a reply with status {reply.status} that is no JSON: {error}"}
        raise Problem(reply.status, {**said, "retryable": False}) from error


def encoded(value: Any) -> bytes:
    """JSON of a value. What JSON cannot say raises ``TypeError`` or ``ValueError`` here, before anything leaves."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
