"""Records that MLflow could not take: kept below `tracking-buffer/` of the state folder, and sent later."""

from pathlib import Path

from tasks.tracking.records import Record
from tasks.tracking.sending import open_run, send_record

BUFFER = "tracking-buffer"


def keep_record(record: Record, run_id: str, home: str) -> None:
    """Keep a record until a later run reaches MLflow; a killed run leaves no half of one."""
    buffer = Path(home) / BUFFER
    buffer.mkdir(parents=True, exist_ok=True)
    draft = buffer / f"{run_id}.draft"
    draft.write_text(record.model_dump_json(), encoding="utf-8")
    draft.replace(buffer / f"{run_id}.json")


def flush_records(home: str) -> None:
    """Send what earlier runs could not."""
    for path in sorted((Path(home) / BUFFER).glob("*.json")):
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
        run_id = open_run(record.tags, name=record.name or path.stem[:8], home=home)
        send_record(run_id, record, home)
        path.unlink()
