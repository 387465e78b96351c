"""The demo target: unit conversions that neither the pool nor the tiny model's training text asks.

Writes `target.jsonl` of the demo folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from clusterucb_core.demo.exchanges import Exchange
from clusterucb_core.demo.families import draw_different
from clusterucb_core.demo.number_skills import held_out_conversion
from clusterucb_core.seeds import child_rng

VALIDATION_ROWS = 20
TEST_ROWS = 100


def draw_target(*, seed: int) -> tuple[list[Exchange], list[Exchange]]:
    """Return the validation and the test exchanges; no two ask for the same conversion."""
    rng = child_rng(seed, "demo-target")
    drawn = draw_different(
        held_out_conversion, VALIDATION_ROWS + TEST_ROWS, rng=rng, same=lambda exchange: exchange.answer
    )
    return drawn[:VALIDATION_ROWS], drawn[VALIDATION_ROWS:]


def write_target(path: Path, validation: Sequence[Exchange], test: Sequence[Exchange]) -> None:
    """Write the target's rows as JSON lines with a `split`."""
    rows = [("validation", exchange) for exchange in validation] + [("test", exchange) for exchange in test]
    lines = [
        json.dumps({"split": split, "prompt": exchange.prompt, "completion": exchange.completion})
        for split, exchange in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
