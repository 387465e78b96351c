"""What a shell offers for an argument when Tab is pressed.

Reads file names and, for version numbers, the catalog; imports little, since whoever pressed the key waits.
"""

from pathlib import Path

from flows.home import state_folder

CONFIG_SUFFIXES = (".yaml", ".yml")
MOST_VERSIONS = 20
# What the packages that define these names take to import is longer than a key press should.
EXPORT_FORMATS = ("jsonl", "parquet", "alpaca", "sharegpt", "datasets")
MODES = ("dynamic", "static")


def version_numbers(incomplete: str) -> list[tuple[str, str]]:
    """Return the newest selection versions with what each is of, and `latest`."""
    catalog = state_folder() / "catalog.duckdb"
    if not catalog.is_file():
        return []
    import duckdb

    try:
        with duckdb.connect(catalog, read_only=True) as con:
            table = con.table("selections").order("selection_version DESC")
            rows = table.select("selection_version", "target", "policy").fetchall()
    except duckdb.Error:
        return []  # another process writes, or wrote it in an earlier version: there is nothing to offer
    found = [(str(number), f"{target}, {policy}") for number, target, policy in rows]
    latest = [("latest", "the newest one")] if found else []
    return [item for item in [*found, *latest] if item[0].startswith(incomplete)][:MOST_VERSIONS]


def configuration_files(incomplete: str) -> list[str]:
    """Return the YAML files whose path begins with what was typed; with none the shell offers other files."""
    start = incomplete.rpartition("/")[2]
    before = incomplete.removesuffix(start)
    folder = Path(before or ".").expanduser()
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.suffix in CONFIG_SUFFIXES)
    return [before + name for name in names if name.startswith(start)]


def export_formats() -> list[str]:
    """Return the formats of an export."""
    return list(EXPORT_FORMATS)


def modes() -> list[str]:
    """Return the modes of a run."""
    return list(MODES)
