"""Whether a service answers where its address says it is."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


def ask_health(address: str, *, seconds: float) -> "httpx.Response":
    """Return what a Prefect or MLflow server answers when it is asked for its health, whatever its status.

    Args:
        address: of the service; it may hold a user and a password.
        seconds: how long to wait for each part of the answer.

    Raises:
        httpx.TransportError: nothing answers there.
        httpx.InvalidURL: it is no address.
    """
    import httpx

    return httpx.get(f"{address.rstrip('/')}/health", timeout=seconds, follow_redirects=True)
