"""A request until its answer: repeated where that is safe, given up where it is not. No I/O."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Union

from .errors import Problem, TidegateError, Unreachable, problem, problem_of
from .steps import Env, NoReply, Reply, Request, Steps, pause, send

#: What the server says of one item of a batch, or why it refused that one.
Verdict = Union[Mapping[str, Any], Problem]


def exchange(env: Env, request: Request, *, within: float | None = None) -> Steps[Reply]:
    """The reply to a request, if it is no error.

    A repeatable request is sent again after what may pass: no reply, 429, 503. One that is not is sent again only if it
    certainly never left. Nothing is begun again after ``within`` seconds (the environment's, unless given), nor if the
    server asks for a longer pause than is left: then the error says so and the caller can come back.
    """
    reply, _ = yield from _answer(env, request, within, _refusal)
    return reply


def exchange_json(env: Env, request: Request, *, within: float | None = None) -> Steps[Any]:
    """The JSON body of the reply."""
    reply = yield from exchange(env, request, within=within)
    return decoded(reply)


def exchange_verdicts(
    env: Env,
    request: Request,
    *,
    within: float | None = None,
    is_no_answer: Callable[[Problem], bool] = lambda _: False,
) -> Steps[list[Verdict]]:
    """A verdict on each item of a batch. One that refuses a repetition says so, as a refusal of the whole request does.

    A request is repeated as if it had been refused as a whole where its first verdict ``is_no_answer``.
    """

    def refusal(reply: Reply) -> Problem | None:
        refused = _refusal(reply)
        if refused is not None:
            return refused
        first = next(iter(_verdicts(reply)), None)
        return first if isinstance(first, Problem) and is_no_answer(first) else None

    reply, repeated = yield from _answer(env, request, within, refusal)
    verdicts = _verdicts(reply)
    for verdict in verdicts:
        if isinstance(verdict, Problem):
            verdict.of_a_write(repeated=repeated)
    return verdicts


def _refusal(reply: Reply) -> Problem | None:
    return None if reply.status < 300 else problem_of(reply)


def _verdicts(reply: Reply) -> list[Verdict]:
    return [problem(one["status"], one["problem"]) if one.get("problem") else one for one in decoded(reply)["results"]]


def _answer(
    env: Env, request: Request, within: float | None, refusal: Callable[[Reply], Problem | None]
) -> Steps[tuple[Reply, bool]]:
    """The reply to a request that is no refusal, and whether an earlier try may have been done as well."""
    give_up_at = env.clock() + (env.retries.within if within is None else within)
    #: Of a try that got no reply, or none of one who knows, nobody knows; and no later one takes that back.
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
            refused = refusal(reply)
            if refused is None:
                return reply, left and request.method != "GET"
            if request.method != "GET":
                refused.of_a_write(repeated=left)
            left = left or refused.leaves_open
            error = refused
            may_repeat = request.repeatable and error.retryable
        delay = env.retries.pause(attempt, error.retry_after or 0.0, env.unit())
        if not may_repeat or env.clock() + delay >= give_up_at:
            raise error
        yield from pause(delay)
        if request.again is not None:
            request = replace(request, body=request.again())
    raise AssertionError("unreachable: the loop ends by return or raise")


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
