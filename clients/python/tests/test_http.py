from __future__ import annotations

import httpx
import pytest

from tidegate import NotDone, Rejected, Unknown
from tidegate.http import classify, of_httpx_error


@pytest.mark.parametrize(
    ("status", "after", "expected"),
    [
        (200, None, None),
        (202, None, None),
        (302, None, Unknown("answered 302")),
        (402, None, Rejected("http_402")),
        (401, None, NotDone("answered 401")),
        (404, None, Rejected("http_404")),
        (408, None, Unknown("answered 408")),
        (409, None, Unknown("answered 409")),
        (429, "3", NotDone("answered 429", 3.0)),
        (499, None, Unknown("answered 499")),
        (500, None, Unknown("answered 500")),
        (503, None, Unknown("answered 503")),
        (503, "1", NotDone("answered 503", 1.0)),
        (503, "soon", Unknown("answered 503")),
        (504, "1", Unknown("answered 504")),
    ],
)
def test_a_status_is_never_taken_for_more_than_it_says(
    status: int, after: str | None, expected: NotDone | Rejected | Unknown | None
) -> None:
    assert classify(status, {} if after is None else {"Retry-After": after}) == expected


def test_only_a_connection_that_was_never_made_is_not_done() -> None:
    assert isinstance(of_httpx_error(httpx.ConnectError("refused")), NotDone)
    for error in (httpx.ReadTimeout("t"), httpx.ReadError("reset"), httpx.RemoteProtocolError("cut"), httpx.WriteError("w")):
        assert isinstance(of_httpx_error(error), Unknown)
