"""Addresses of services without what they hold in secret: a user, a password, a query."""

from urllib.parse import unquote

MASK = "***"
# A shorter text stands in too many words to be told from them.
_LEAST_CHARS = 4


def masked(text: str, address: str) -> str:
    """Return a text that may quote an address, with its user, password and query masked.

    Args:
        text: of an error, or the address itself.
        address: of a service, `SCHEME://USER:PASSWORD@HOST/PATH?QUERY`. Whatever stands before its last @
            counts as secret: a password that was not quoted may hold a slash.
    """
    rest = address.partition("://")[2]
    if not rest:
        return text
    rest, _, query = rest.partition("?")
    user = rest.rpartition("@")[0]
    password = user.partition(":")[2]
    shown = text.replace(f"{user}@", f"{MASK}@") if user else text
    for secret in sorted({query, user, password, unquote(password)}, key=len, reverse=True):
        if len(secret) >= _LEAST_CHARS:
            shown = shown.replace(secret, MASK)
    return shown


def masked_address(address: str) -> str:
    """Return an address with its user, password and query masked."""
    return masked(address, address)
