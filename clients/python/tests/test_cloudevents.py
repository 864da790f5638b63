"""Events as another project's SDK writes them."""

from __future__ import annotations

from typing import Any

import httpx
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from tidegate import Client

from .conftest import RealServer


def event(**changes: Any) -> CloudEvent:
    attributes = {"id": "e-1", "source": "/shop/7", "type": "deposit.taken", "datacontenttype": "application/json"}
    return CloudEvent(attributes={**attributes, **changes}, data={"cents": 1999})


def post(server: RealServer, message: HTTPMessage) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/queues/deposits/events", headers=dict(message.headers), content=message.body)


def test_an_event_is_one_message_in_whichever_mode_it_comes(server: RealServer) -> None:
    first = post(server, to_binary_event(event()))
    assert first.status_code == 202, first.text
    again = post(server, to_structured_event(event()))
    assert (again.status_code, again.json()["result"], again.json()["id"]) == (202, "known", first.json()["id"])
    with Client(server.url) as tide:
        message = tide.get(first.json()["id"], reveal=True)
    assert (message.queue, message.kind) == ("deposits", "deposit.taken")
    assert message.said["payload"] == {"cents": 1999}


def test_events_of_two_sources_are_two_messages_and_another_payload_is_a_conflict(server: RealServer) -> None:
    first, other = post(server, to_structured_event(event())), post(server, to_structured_event(event(source="/shop/8")))
    assert first.json()["id"] != other.json()["id"]
    changed = CloudEvent(attributes=event().get_attributes(), data={"cents": 2000})
    refused = post(server, to_binary_event(changed))
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
