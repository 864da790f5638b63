"""A server that is a list: every request is noted and gets the next reply, by a clock that moves only when told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union

from tidegate.steps import Ask, Env, NoReply, Pause, Reply, Request, Retries, Steps

T = TypeVar("T")
Script = Union[Reply, NoReply, Callable[[Request], Reply]]


def said(body: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode())


def refused(slug: str, status: int, *, retryable: bool = False, **more: Any) -> Reply:
    return said({"type": f"/problems/{slug}", "status": status, "detail": "so it is", "retryable": retryable, **more}, status)


@dataclass
class Scripted:
    """Plays the server, and keeps the time."""

    replies: list[Script]
    now: float = 100.0
    requests: list[Request] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def env(self, within: float = 30.0) -> Env:
        return Env(Retries(within=within, base=1.0, cap=8.0), clock=lambda: self.now, unit=lambda: 0.5)

    def run(self, steps: Steps[T]) -> T:
        answer: Any = None
        failed: BaseException | None = None
        while True:
            try:
                step = steps.send(answer) if failed is None else steps.throw(failed)
            except StopIteration as end:
                value: T = end.value
                return value
            try:
                answer, failed = self._carry_out(step), None
            except BaseException as error:
                failed = error

    def _carry_out(self, step: Any) -> Any:
        if isinstance(step, Pause):
            self.pauses.append(step.seconds)
            self.now += step.seconds
            return None
        if isinstance(step, Ask):
            return step.function(step.key)
        self.requests.append(step)
        assert self.replies, f"nobody wrote a reply to {step.method} {step.path}"
        reply = self.replies.pop(0)
        if isinstance(reply, NoReply):
            raise reply
        return reply if isinstance(reply, Reply) else reply(step)

    def bodies(self) -> list[Any]:
        return [json.loads(request.body or b"null") for request in self.requests]
