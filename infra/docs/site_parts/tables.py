"""The columns of the catalog's tables, from a catalog made in memory."""

import duckdb

from clusterucb_core.store.migration import ensure_schema
from site_parts.markdown import table

COLUMNS = """
SELECT table_name, column_name, data_type FROM duckdb_columns()
WHERE NOT internal ORDER BY table_name, column_index
"""


def column_tables() -> dict[str, str]:
    """Return, by table or view, the names and types of its columns in their order, as Markdown."""
    with duckdb.connect(":memory:") as con:
        ensure_schema(con, None)
        found = con.execute(COLUMNS).fetchall()
    names = dict.fromkeys(name for name, _, _ in found)
    return {
        name: table(
            ("column", "type"), [(f"`{column}`", kind) for owner, column, kind in found if owner == name]
        )
        for name in names
    }
