"""Samples taken out of token tables, whose numbers decode to text.

Reads and replaces artifacts `tokens`, whole: their files only fit each other.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb_core.erasure.folders import manifest_of, replace_folder, seal_draft
from clusterucb_core.mapped_arrays import new_mapped_array
from clusterucb_core.records import IntArray
from clusterucb_core.seals import check_files
from clusterucb_core.store import ERASED


def erase_from_tokens(folder: Path, sample_ids: frozenset[str]) -> bool:
    """Take samples out of a token table; return whether it held any.

    Raises:
        StaleArtifact: it is damaged.
    """
    check_files(folder, manifest_of(folder)[1])
    held, excluded = _read(folder / "sample_ids.json"), _read(folder / "exclusions.json")
    told = any(row["sample_id"] in sample_ids and row["detail"] != ERASED for row in excluded)
    if not told and sample_ids.isdisjoint(held):
        return False
    replace_folder(folder, partial(_write_others, folder, sample_ids))
    return True


def _write_others(folder: Path, sample_ids: frozenset[str], draft: Path) -> None:
    held: list[str] = _read(folder / "sample_ids.json")
    kept = np.array([sample_id not in sample_ids for sample_id in held], dtype=np.bool_)
    offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    lengths = np.diff(offsets)[kept]
    for name in ("input_ids.npy", "supervised.npy"):
        _copy_parts(folder / name, draft / name, offsets=offsets, kept=kept)
    np.save(draft / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    others = [sample_id for sample_id in held if sample_id not in sample_ids]
    excluded = [
        row | {"detail": ERASED} if row["sample_id"] in sample_ids else row
        for row in _read(folder / "exclusions.json")
    ]
    supervised = np.load(draft / "supervised.npy", allow_pickle=False)
    content, seal = manifest_of(folder)
    content |= {
        "n": len(others),
        "tokens": int(lengths.sum()),
        "supervised_tokens": int(supervised.sum()),
        "erased": sorted({*content.get("erased", []), *sample_ids.intersection(held)}),
    }
    for name, rows in (("sample_ids.json", others), ("exclusions.json", excluded)):
        (draft / name).write_text(json.dumps(rows), encoding="utf-8")
    seal_draft(draft, content, seal)


def _copy_parts(source: Path, out: Path, *, offsets: IntArray, kept: NDArray[np.bool_]) -> None:
    """Copy a flat array without the parts of the samples that are not kept, from one of these to the next."""
    total = int(np.diff(offsets)[kept].sum())
    if total == 0:  # an empty file cannot be mapped
        np.save(out, np.load(source, allow_pickle=False)[:0])
        return
    values = np.load(source, mmap_mode="r", allow_pickle=False)
    copied = new_mapped_array(out, values.dtype, (total,))
    ends = np.append(np.flatnonzero(~kept), len(kept))
    start = at = 0
    for end in ends.tolist():
        part = values[int(offsets[start]) : int(offsets[end])]
        copied[at : at + part.size] = part
        start, at = end + 1, at + part.size
    copied.flush()


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
