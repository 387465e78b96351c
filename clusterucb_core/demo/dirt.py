"""What is planted in the demo pool beside its clean samples, and what ingest should make of it."""

from collections.abc import Mapping
from types import MappingProxyType

from clusterucb_core.demo.families import FAMILY_SIZES, Family

BAD_ANSWERS = 4
BAD_JSON_LINES = 3
BAD_ROLES = 1
EMPTY_AFTER_MARKER = 2
LEAKS = 2
NON_UTF8_LINES = 2
NULL_ANSWERS = 2
PLACEHOLDERS = 20
REPEATED_PROMPTS = 6
REPEATED_ROWS = 10
SHORT_LINES = 2

END_MARKER = "<|endoftext|>"
PLACEHOLDER_WORDS = ("n/a", "no input", "none", "<no input>")

# rows that are no sample, by the reason that the quarantine should give
QUARANTINED: Mapping[Family, Mapping[str, int]] = MappingProxyType(
    {
        "arithmetic_stories": {"no_answer": BAD_ANSWERS},
        "dates": {"missing_field": NULL_ANSWERS},
        "json_extraction": {"invalid_json": BAD_JSON_LINES},
        "small_talk": {"unknown_role": BAD_ROLES},
        "sorting": {"wrong_column_count": SHORT_LINES},
        "unit_conversion": {"not_utf8": NON_UTF8_LINES, "no_answer": EMPTY_AFTER_MARKER},
    }
)
# rows whose prompt another row has too, once normalised
REPEATED: Mapping[Family, int] = MappingProxyType(
    {"capitals": REPEATED_PROMPTS, "unit_conversion": REPEATED_ROWS}
)
# samples that ask what a test row of the target asks; they are kept in the pool
LEAKED: Mapping[Family, int] = MappingProxyType({"unit_conversion": LEAKS})
# rows that are cleaned: a byte order mark before a file, end markers, words in place of an empty input
CLEANED: Mapping[Family, Mapping[str, int]] = MappingProxyType(
    {
        "capitals": {"byte_order_mark": 1},
        "string_puzzles": {"placeholder_input": PLACEHOLDERS},
        "unit_conversion": {"end_marker": FAMILY_SIZES["unit_conversion"] + REPEATED_ROWS + LEAKS},
    }
)
