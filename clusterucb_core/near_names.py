"""What may have been meant by a name that nobody knows."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `did you mean X?` where one of the known names is near, else an empty text."""
    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f"did you mean {near[0]}?" if near else ""


def known_names(name: object, known: Sequence[str]) -> str:
    """Return `did you mean X? known: X, Y`, without the question where none is near."""
    return " ".join(filter(None, [did_you_mean(name, known), f"known: {', '.join(known)}"]))
