"""Token tables: the tokens of many samples as flat arrays, written once and read through memory maps.

Files read and written: the artifacts of the stage `tokens`, each with `input_ids.npy` int32 [t],
`supervised.npy` bool [t], `offsets.npy` int64 [n + 1], `sample_ids.json` and `exclusions.json`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clusterucb_core.artifacts import find_artifact, fingerprint, new_artifact, read_artifact
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.lm.chat import ChatFormat, Tokenized, tokenize_batch
from clusterucb_core.lm.lora import ModelSettings
from clusterucb_core.lm.templates import PLAIN_TEMPLATE, read_template
from clusterucb_core.records import ArtifactRef, Exclusion, IntArray, Sample, TokenizedSample

STAGE = "tokens"
TOKENS_VERSION = 1
BATCH_SAMPLES = 256


@dataclass(frozen=True)
class TokenTable:
    """The tokens of the usable samples of one pool or target.

    Attributes:
        sample_ids: ids [n] in the order in which they were written.
        lengths: tokens of each sample, int64 [n].
        exclusions: the samples that have no tokens, and why.
        offsets: int64 [n + 1], where each sample begins in the flat arrays.
        input_ids: int32 [t], all tokens.
        supervised: bool [t], true where loss is taken.
    """

    sample_ids: list[str]
    lengths: IntArray
    exclusions: tuple[Exclusion, ...]
    offsets: IntArray
    input_ids: IntArray
    supervised: IntArray

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The row of each sample id."""
        return {sample_id: row for row, sample_id in enumerate(self.sample_ids)}

    @cached_property
    def supervised_counts(self) -> IntArray:
        """Tokens that carry loss in each sample, int64 [n], at least 1."""
        if not self.sample_ids:
            return np.zeros(0, dtype=np.int64)
        return np.add.reduceat(self.supervised, self.offsets[:-1], dtype=np.int64)

    def get(self, sample_id: str) -> TokenizedSample:
        """Return the tokens of one sample.

        Raises:
            MissingArtifact: the table has no tokens for it.
        """
        row = self.rows.get(sample_id)
        if row is None:
            raise MissingArtifact(self._why_missing(sample_id))
        part = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        ids = self.input_ids[part].astype(np.int64)
        return TokenizedSample(sample_id, ids, np.where(self.supervised[part], ids, -100))

    def take(self, ids: Iterable[str]) -> list[TokenizedSample]:
        """Return the tokens of several samples, in the order asked for.

        Raises:
            MissingArtifact: the table has no tokens for one of them.
        """
        return [self.get(sample_id) for sample_id in ids]

    def _why_missing(self, sample_id: str) -> str:
        for exclusion in self.exclusions:
            if exclusion.sample_id == sample_id:
                return (
                    f"sample {sample_id} has no tokens: {exclusion.reason} ({exclusion.detail}); leave it out"
                )
        return f"sample {sample_id} is none of the {len(self.sample_ids)} of this token table; tokenize it"


def tokens_fingerprint(settings: ModelSettings, model_fp: str, sample_digest: str) -> str:
    """Return the key of a token table.

    Args:
        settings: of which the template (its text, not its path) and the length limit matter.
        model_fp: fingerprint of the base model, which covers its tokenizer.
        sample_digest: names the samples and their order.
    """
    template = read_template(settings.chat_template)
    return fingerprint(TOKENS_VERSION, PLAIN_TEMPLATE, template, settings.max_length, model_fp, sample_digest)


def write_tokens(
    artifact_root: Path, key: str, samples: Iterable[Sample], chat: ChatFormat, *, max_length: int
) -> ArtifactRef:
    """Write the token table of a stream of samples; return at once where it is there.

    Args:
        artifact_root: the artifact root.
        key: the table's fingerprint.
        samples: read once, in bounded memory; ids are unique.
        chat: tokenizer and template.
        max_length: limit in tokens.

    Returns:
        The artifact; its manifest holds the counts `n`, `excluded`, `truncated`, `tokens`,
        `supervised_tokens`.
    """
    present = find_artifact(artifact_root, STAGE, key)
    if present is not None:
        return present
    manifest: dict[str, Any] = {"tokens_version": TOKENS_VERSION, "max_length": max_length}
    with new_artifact(artifact_root, STAGE, key, manifest) as folder:
        manifest.update(_write_table(folder, samples, chat, max_length=max_length))
    return ArtifactRef(stage=STAGE, fingerprint=key, path=str(artifact_root / STAGE / key))


def open_tokens(ref: ArtifactRef) -> TokenTable:
    """Open a token table; the flat arrays stay on disk.

    Raises:
        MissingArtifact: the artifact is gone.
        StaleArtifact: one of its files is gone or not what was written, or they do not fit each other.
    """
    folder, manifest = read_artifact(ref)
    sample_ids: list[str] = json.loads((folder / "sample_ids.json").read_text(encoding="utf-8"))
    excluded: list[dict[str, str]] = json.loads((folder / "exclusions.json").read_text(encoding="utf-8"))
    offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    mode = "r" if manifest.get("tokens") else None  # an empty file cannot be mapped
    input_ids = np.load(folder / "input_ids.npy", mmap_mode=mode, allow_pickle=False)
    supervised = np.load(folder / "supervised.npy", mmap_mode=mode, allow_pickle=False)
    if offsets.size != len(sample_ids) + 1 or not offsets[-1] == input_ids.size == supervised.size:
        raise StaleArtifact(
            f"{folder} holds {len(sample_ids)} ids, {offsets.size} offsets and {input_ids.size} tokens, "
            "which do not fit; delete the folder and run again"
        )
    exclusions = tuple(Exclusion(**row) for row in excluded)
    return TokenTable(sample_ids, np.diff(offsets), exclusions, offsets, input_ids, supervised)


class _FlatArray:
    """A one-dimensional `.npy` file that is written piece by piece; its header is completed at the end."""

    def __init__(self, file: BinaryIO, dtype: type[np.generic]):
        self.file = file
        self.dtype = np.dtype(dtype)
        self.size = 0
        self._write_header()
        self.start = file.tell()

    def append(self, values: IntArray) -> None:
        """Write more values."""
        self.file.write(values.astype(self.dtype).tobytes())
        self.size += values.size

    def close(self) -> None:
        """Write the final length into the header, for which NumPy keeps room."""
        self.file.seek(0)
        self._write_header()
        if self.file.tell() != self.start:
            raise StaleArtifact(f"the header of a token file grew to {self.file.tell()} bytes; report this")

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self.file, header)


def token_counts(ref: ArtifactRef) -> dict[str, int]:
    """Return how many tokens each sample of a token table has."""
    table = open_tokens(ref)
    return dict(zip(table.sample_ids, table.lengths.tolist(), strict=True))


def _write_table(
    folder: Path, samples: Iterable[Sample], chat: ChatFormat, *, max_length: int
) -> dict[str, int]:
    sample_ids: list[str] = []
    exclusions: list[Exclusion] = []
    lengths: list[int] = []
    truncated = supervised_tokens = 0
    with (
        (folder / "input_ids.npy").open("wb") as ids_file,
        (folder / "supervised.npy").open("wb") as mask_file,
    ):
        input_ids, supervised = _FlatArray(ids_file, np.int32), _FlatArray(mask_file, np.bool_)
        for outcome in _outcomes(samples, chat, max_length=max_length):
            if isinstance(outcome, Exclusion):
                exclusions.append(outcome)
                continue
            mask = outcome.sample.labels != -100
            input_ids.append(outcome.sample.input_ids)
            supervised.append(mask)
            sample_ids.append(outcome.sample.sample_id)
            lengths.append(mask.size)
            truncated += outcome.truncated
            supervised_tokens += int(mask.sum())
        input_ids.close()
        supervised.close()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets, allow_pickle=False)
    _write_json(folder / "sample_ids.json", sample_ids)
    _write_json(folder / "exclusions.json", [asdict(exclusion) for exclusion in exclusions])
    counts = {"n": len(sample_ids), "excluded": len(exclusions), "truncated": truncated}
    return counts | {"tokens": int(offsets[-1]), "supervised_tokens": supervised_tokens}


def _outcomes(
    samples: Iterable[Sample], chat: ChatFormat, *, max_length: int
) -> Iterator[Tokenized | Exclusion]:
    stream = iter(samples)
    while batch := list(islice(stream, BATCH_SAMPLES)):
        yield from tokenize_batch(
            chat, [(sample.sample_id, sample.messages) for sample in batch], max_length=max_length
        )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
