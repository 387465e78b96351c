"""Rows that are no sample: the reasons, and the record that the quarantine table keeps of each."""

from dataclasses import dataclass
from enum import StrEnum

RAW_BYTES = 4096
DETAIL_CHARS = 500
# A longer row is no training sample, and holding it would let one row decide the memory of the whole run.
MAX_ROW_BYTES = 4 * 1024 * 1024


class Reason(StrEnum):
    """Why a row, or one conversation of it, is no sample."""

    INVALID_JSON = "invalid_json"
    TOO_DEEP = "too_deep"
    INVALID_CSV = "invalid_csv"
    NOT_UTF8 = "not_utf8"
    NUL_CHARACTER = "nul_character"
    LONE_SURROGATE = "lone_surrogate"
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    WRONG_COLUMN_COUNT = "wrong_column_count"
    UNKNOWN_ROLE = "unknown_role"
    NO_PROMPT = "no_prompt"
    NO_ANSWER = "no_answer"
    TOO_SHORT = "too_short"
    ROW_TOO_LONG = "row_too_long"
    BROKEN_CONTAINER = "broken_container"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its container gives it: named values, or a tuple of the columns of a headerless table.

    `number` is the line where the row starts, or its place from 1 in an array or a Parquet file. `raw` is
    empty where the container holds no text.
    """

    number: int
    value: object
    raw: bytes


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no sample; `raw` is its beginning, at most `RAW_BYTES` of UTF-8."""

    row_number: int
    reason: Reason
    detail: str
    raw: str


class Unusable(Exception):
    """A row, or one conversation of it, cannot become a sample."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class BrokenContainer(Exception):
    """A container cannot be read any further; the rows before it have been given."""

    def __init__(self, detail: str, raw: bytes = b"") -> None:
        super().__init__(detail)
        self.raw = raw


def bad_row(row_number: int, reason: Reason, detail: str, *, raw: bytes) -> BadRow:
    """Return the quarantine record of a row, its text cut and free of anything a table cannot hold."""
    plain_detail = detail[:DETAIL_CHARS].encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
    return BadRow(row_number, reason, plain_detail, _cut_text(raw))


def _cut_text(raw: bytes) -> str:
    text = raw[:RAW_BYTES].decode("utf-8", "replace").replace("\x00", "\ufffd")
    return text.encode()[:RAW_BYTES].decode("utf-8", "ignore")
