"""`examples/capture.py`: what it makes of the gateway's answers. That it is killed without harm is `test_torture.py`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest

from examples.capture import Deposit, Done, Gateway, Settings, policy_of
from tidegate import AtMostOnce, Keyed, Lookup, NotDone, NotFound, Rejected

DEPOSIT = Deposit(deposit="dep-1", account="acct-1", cents=100)


def gateway(status: int, body: str, **headers: str) -> Gateway:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=body, headers=headers)

    return Gateway(httpx.Client(base_url="http://gateway", transport=httpx.MockTransport(answer)))


def what(ask: Callable[[], Done]) -> str:
    """What a call comes to: `confirmed`, or what is raised, where everything that is not certain is `unknown`."""
    try:
        done = ask()
    except Rejected as no:
        return f"rejected {no.code}"
    except NotDone:
        return "not done"
    except NotFound:
        return "not found"
    except Exception:
        return "unknown"
    return f"confirmed {done['reference']}"


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (200, '{"reference":"capture-1"}', {}, "confirmed capture-1"),
        (200, "<html>", {}, "unknown"),
        (200, "", {}, "unknown"),
        (402, '{"code":"card_declined"}', {}, "rejected card_declined"),
        (402, "pay the proxy", {}, "unknown"),
        (429, "{}", {"retry-after": "1"}, "not done"),
        (503, "{}", {"retry-after": "1"}, "not done"),
        (503, "{}", {}, "unknown"),
        (422, '{"code":"key_reused"}', {}, "rejected http_422"),
        (500, "{}", {}, "unknown"),
        (504, "{}", {}, "unknown"),
    ],
)
def test_every_status_is_one_of_four_answers_and_only_what_is_proven_is_certain(
    status: int, body: str, headers: dict[str, str], expected: str
) -> None:
    assert what(lambda: gateway(status, body, **headers).capture("key", DEPOSIT)) == expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, '{"seq":7,"operation":"capture","result":"captured"}', "confirmed capture-7"),
        (200, '{"seq":7,"operation":"capture","result":"declined"}', "rejected card_declined"),
        (404, '{"code":"not_found"}', "not found"),
        (404, '{"code":"lookup_unsupported"}', "unknown"),
        (404, "no such page", "unknown"),
        (200, "{}", "unknown"),
        (503, "{}", "unknown"),
        (429, "{}", "unknown"),
    ],
)
def test_a_look_up_believes_only_the_gateways_own_words(status: int, body: str, expected: str) -> None:
    assert what(lambda: gateway(status, body).find("key")) == expected


@pytest.mark.parametrize(("error", "expected"), [(httpx.ConnectError, "not done"), (httpx.ReadTimeout, "unknown")])
def test_a_call_without_an_answer_is_not_done_only_if_it_never_left(error: type[Exception], expected: str) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error("no answer")

    silent = Gateway(httpx.Client(base_url="http://gateway", transport=httpx.MockTransport(fail)))
    assert what(lambda: silent.capture("key", DEPOSIT)) == expected
    assert what(lambda: silent.find("key")) == "unknown"


def test_the_policy_is_what_the_gateway_promises_and_nothing_is_guessed() -> None:
    quarantine = timedelta(seconds=6)
    assert policy_of("idempotent", quarantine) == Keyed(timedelta(days=1), quarantine)
    assert policy_of("lookup", quarantine) == Lookup(quarantine)
    assert policy_of("none", quarantine) == AtMostOnce(quarantine)
    with pytest.raises(KeyError):
        policy_of("perhaps", quarantine)


def test_a_token_is_not_shown_with_the_settings() -> None:
    settings = Settings.read({"TIDEGATE_URL": "http://s", "TIDEGATE_TOKEN": "tg_secret", "GATEWAY_URL": "http://g"})
    assert (settings.token, settings.lease) == ("tg_secret", timedelta(seconds=5))
    assert "tg_secret" not in repr(settings)
