"""Calls of the Prefect server's API."""

from collections.abc import Mapping
from typing import Any

import httpx

from .errors import StackError
from .layout import Stack

CALL_SECONDS = 60
PAGE = 200  # the most records that the server returns at once


def call(stack: Stack, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
    """Call the server and return its answer, whatever its status.

    Raises:
        StackError: it does not answer.
    """
    try:
        return httpx.request(method, f"{stack.prefect_api}/{path}", json=body, timeout=CALL_SECONDS)
    except httpx.TransportError as error:
        raise StackError(
            f"the Prefect server at {stack.prefect_url} does not answer ({error!r}); "
            f"see {stack.log('prefect')}"
        ) from error


def content(answer: httpx.Response, what: str) -> Any:
    """Return what an answer holds, which is about `what`.

    Raises:
        StackError: the server refused.
    """
    if not answer.is_success:
        raise StackError(f"the Prefect server refused {what}: {answer.status_code} {answer.text[:500]}")
    return answer.json()


def find(stack: Stack, kind: str, **filters: Any) -> list[dict[str, Any]]:
    """Return all records of a kind that match, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        body = {**filters, "limit": PAGE, "offset": len(found)}
        page = content(call(stack, "POST", f"{kind}/filter", body), f"the list of {kind}")
        found += page
        if len(page) < PAGE:
            return found
