"""What a worker asks of the server about the messages it runs, as steps: claim, extend, settle, declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Union

from .durations import Duration, moment_of, ms
from .errors import Problem, Unreachable
from .exchange import encoded, exchange, exchange_json, exchange_verdicts
from .model import part
from .steps import Env, Request, Steps


@dataclass(frozen=True)
class Policy:
    """What the kind of a message allows, also where its worker died. ``backoff``: the first pause between attempts, and the
    longest."""

    max_attempts: int = 20
    backoff: tuple[Duration, Duration] = (1, 600)
    #: How long a handler may take. One that blocks is not interrupted: its effects are refused from then on.
    timeout: Duration = 300
    #: How often a message may crash its process while it runs alone in it.
    crash_limit: int = 3

    def wire(self) -> dict[str, Any]:
        """As it is sent."""
        base, cap = self.backoff
        return {
            "max_attempts": self.max_attempts,
            "backoff": {"base_ms": ms(base), "cap_ms": ms(cap)},
            "timeout_ms": ms(self.timeout),
            "crash_limit": self.crash_limit,
        }


@dataclass(frozen=True)
class Received:
    """A message as its handler gets it."""

    id: str
    tenant: str
    queue: str
    kind: str
    #: Of its payload.
    version: int
    key: str
    payload: Any = field(repr=False)
    #: The message from which it followed, over all steps.
    flow: str
    parent: str | None
    headers: Mapping[str, str]
    enqueued_at: datetime | None
    deadline: datetime | None
    said: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Received:
        """From the wire."""
        return cls(
            id=said["id"],
            tenant=said.get("tenant", ""),
            queue=said["queue"],
            kind=said["kind"],
            version=said["version"],
            key=said["key"],
            payload=said["payload"],
            flow=said.get("flow") or said["id"],
            parent=said.get("parent"),
            headers=said.get("headers") or {},
            enqueued_at=moment_of(said.get("enqueued_at")),
            deadline=moment_of(said.get("deadline")),
            said=said,
        )


@dataclass(frozen=True)
class Lease:
    """The time-limited right to run a message, to make its effects and to settle it."""

    message: Received
    token: str = field(repr=False)
    #: From 1.
    attempt: int
    #: Whether this run is to clear up an effect whose answer is missing; it counts no attempt.
    reconciling: bool
    #: Whether an earlier run crashed: it runs with nothing else in the process.
    suspect: bool

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Lease:
        """From the wire."""
        return cls(
            message=Received.read(said["message"]),
            token=said["token"],
            attempt=said["counters"]["attempt"],
            reconciling=said["reconciling"],
            suspect=said["suspect"],
        )


@dataclass(frozen=True)
class Claim:
    """A claim. Sent again under its nonce, it brings the same leases: its answer may have been lost."""

    worker: str
    queue: str
    #: Never more than can be started now. None: only what this claim has brought before.
    slots: int
    kinds: Mapping[str, int]
    nonce: str
    #: Seconds.
    lease: float
    #: How long the server may wait for something, in seconds.
    wait: float = 0.0

    def wire(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "worker": self.worker,
            "queues": {self.queue: self.slots},
            "kinds": dict(self.kinds),
            "nonce": self.nonce,
            "lease_ms": ms(self.lease),
            "wait_ms": ms(self.wait),
        }


def claim(env: Env, claim: Claim, *, within: float | None = None) -> Steps[list[Lease]]:
    """Messages to run. Repeated while what it brings would still hold for a while: a lease counts from the first sending."""
    request = Request("POST", "/v1/leases", body=encoded(claim.wire()), repeatable=True, patience=claim.wait)
    reply = yield from exchange_json(env, request, within=claim.lease / 2 if within is None else within)
    return [Lease.read(one) for one in reply["leases"]]


def extend(
    env: Env, leases: Sequence[Lease], duration: Duration, *, alone: bool = False, within: float = 0.0
) -> Steps[list[Union[bool, Problem]]]:
    """Holds leases on. For each: whether somebody asked to cancel the message, or why it could not be extended."""
    more = {"lease_ms": ms(duration), **({"alone": True} if alone else {})}
    body = encoded({"leases": [{"id": lease.message.id, "token": lease.token, **more} for lease in leases]})
    request = Request("POST", "/v1/leases/extend", body=body, repeatable=True)
    verdicts = yield from exchange_verdicts(env, request, within=within)
    return [one if isinstance(one, Problem) else bool(one.get("cancel_requested")) for one in verdicts]


def settle(env: Env, lease: Lease, settlement: Mapping[str, Any], *, within: float) -> Steps[str]:
    """Stores the end of a run; the state of the message after it. Repeated until it is answered, or ``within`` is over."""
    body = encoded({"settlements": [{"id": lease.message.id, "token": lease.token, **settlement}]})
    request = Request("POST", "/v1/leases/settle", body=body, repeatable=True)
    # What is not stored for want of room or rights is the run's to end otherwise; a store that is away comes back.
    verdict, *_ = yield from exchange_verdicts(env, request, within=within, is_no_answer=lambda error: error.status == 503)
    if isinstance(verdict, Problem):
        raise verdict
    return str(verdict["state"])


def declare(env: Env, kind: str, policy: Policy) -> Steps[None]:
    """Says what a kind allows."""
    path = f"/v1/kinds/{part(kind)}/policy"
    yield from exchange(env, Request("PUT", path, body=encoded(policy.wire()), repeatable=True))


def may_pass(error: Exception) -> bool:
    """Whether the server may answer otherwise later."""
    return isinstance(error, Unreachable) or (isinstance(error, Problem) and error.retryable)
