"""Records that MLflow could not take: kept below `tracking-buffer/` of the state folder, and sent later.

A record that is damaged, or that MLflow refuses for what is in it, is set aside in `refused/` there: it would
be refused again by every run.
"""

import logging
from pathlib import Path

from pydantic import ValidationError

from tasks.tracking.connection import refused
from tasks.tracking.records import Record
from tasks.tracking.sending import open_run, send_record

logger = logging.getLogger(__name__)

BUFFER = "tracking-buffer"
REFUSED = "refused"


def keep_record(record: Record, run_id: str, home: str) -> None:
    """Keep a record until a later run reaches MLflow; a killed run leaves no half of one."""
    buffer = Path(home) / BUFFER
    buffer.mkdir(parents=True, exist_ok=True)
    draft = buffer / f"{run_id}.draft"
    try:
        draft.write_text(record.model_dump_json(), encoding="utf-8")
        draft.replace(buffer / f"{run_id}.json")
    finally:
        draft.unlink(missing_ok=True)  # half of one, where the disk is full


def flush_records(home: str) -> None:
    """Send what earlier runs could not; a sender that is killed leaves the record to the next one."""
    for path in sorted((Path(home) / BUFFER).glob("*.json")):
        try:
            record = Record.model_validate_json(path.read_bytes())
        except ValidationError as error:
            _set_aside(path, f"it is damaged ({error.error_count()} errors)")
            continue
        try:
            run_id = open_run(record.tags, name=record.name or path.stem[:8], home=home)
            send_record(run_id, record, home)
        except Exception as error:
            if not refused(error):
                raise
            _set_aside(path, "MLflow refuses what is in it")
        else:
            path.unlink()


def _set_aside(path: Path, reason: str) -> None:
    folder = path.parent / REFUSED
    folder.mkdir(exist_ok=True)
    path.replace(folder / path.name)
    logger.warning(
        "a record that waited for MLflow is not sent: %s; it lies in %s, to be mended or removed",
        reason,
        folder / path.name,
    )
