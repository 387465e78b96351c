"""The row shapes that a pool file may have, from the readers that know them."""

import inspect

from clusterucb_core.pool.formats import SHAPES
from site_parts.markdown import table


def formats_table() -> str:
    """Return each shape's name, the keys that make a row one, and what it is, in the order of detection."""
    rows = [
        (
            f"`{shape.name}`",
            ", ".join(" or ".join(f"`{key}`" for key in keys) for keys in shape.needs),
            inspect.cleandoc(type(shape).__doc__ or ""),
        )
        for shape in SHAPES
    ]
    return table(("format", "keys", "rows"), rows)
