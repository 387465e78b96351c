"""Not one bit of an artifact can change without being found."""

import json

import pytest

from clusterucb_core import seals
from clusterucb_core.errors import StaleArtifact
from clusterucb_core.seals import MANIFEST, Seal, check_files, digest_files, read_sealed, sealed_text

CONTENT = {"n": 3, "share": 0.1, "text": 'quotes " and \N{GRINNING FACE}', "rows": [[1, None], []]}


@pytest.fixture
def folder(tmp_path):
    """A sealed folder with a file beside its manifest and one in a folder."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "data").write_bytes(b"some data")
    (tmp_path / "checkpoint" / "weights").write_bytes(b"weights")
    seal = Seal(stage="stage", fingerprint="key", files=digest_files(tmp_path))
    (tmp_path / MANIFEST).write_text(sealed_text(CONTENT, seal))
    return tmp_path


def test_a_manifest_is_plain_json_that_is_read_back_without_its_seal(folder):
    content, seal = read_sealed(folder, "stage", "key")
    assert content == CONTENT
    assert sorted(seal.files) == ["checkpoint/weights", "data"]
    # the digest of "some data" as sha256sum gives it
    assert seal.files["data"].sha256 == "1307990e6ba5ca145eb35e99182a9bec46531bc54ddf656a602c780fa0240dee"
    assert json.loads((folder / MANIFEST).read_text())["seal"]["fingerprint"] == "key"


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_found(folder):
    path = folder / MANIFEST
    raw = path.read_bytes()
    for position in range(len(raw)):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(StaleArtifact):
            read_sealed(folder, "stage", "key")


def test_the_beginning_of_a_manifest_is_found_to_be_one(folder):
    path = folder / MANIFEST
    raw = path.read_bytes()
    for length in range(0, len(raw), 3):
        path.write_bytes(raw[:length])
        with pytest.raises(StaleArtifact, match="is damaged"):
            read_sealed(folder, "stage", "key")


@pytest.mark.parametrize("text", ["{}", '{"n": 3}', "[1]", "null"])
def test_a_manifest_without_a_digest_is_that_of_an_earlier_version(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(StaleArtifact, match="was written by an earlier version"):
        read_sealed(folder, "stage", "key")


def test_a_digested_object_without_a_seal_is_no_manifest(folder):
    (folder / MANIFEST).write_text(seals.digested_text({"n": 3}))
    with pytest.raises(StaleArtifact, match="has no seal that can be read"):
        read_sealed(folder, "stage", "key")


@pytest.mark.parametrize(("stage", "key"), [("other", "key"), ("stage", "other"), ("stage/key", "key")])
def test_the_manifest_of_another_artifact_is_refused(folder, stage, key):
    with pytest.raises(StaleArtifact, match=f"lies where {stage}/{key} belongs, but holds stage/key"):
        read_sealed(folder, stage, key)


@pytest.mark.parametrize("name", ["data", "checkpoint/weights"])
@pytest.mark.parametrize("way", ["flipped", "truncated", "extended", "deleted"])
def test_a_damaged_file_is_named_with_what_was_expected_and_seen(folder, damage, name, way):
    seal = read_sealed(folder, "stage", "key")[1]
    check_files(folder, seal)
    damage[way](folder / name)
    with pytest.raises(StaleArtifact, match=f"{name} is damaged: it is .* instead of {seal.files[name]}"):
        check_files(folder, seal)


def test_only_the_parts_that_will_be_read_are_looked_at(folder, damage):
    seal = read_sealed(folder, "stage", "key")[1]
    damage["deleted"](folder / "data")
    check_files(folder, seal, ("checkpoint",))
    check_files(folder, seal, ("checkpoint/weights",))
    with pytest.raises(StaleArtifact, match="data is damaged: it is absent"):
        check_files(folder, seal, ("checkpoint", "data"))
    with pytest.raises(StaleArtifact, match="stage/key was written without checkpoint-2"):
        check_files(folder, seal, ("checkpoint-2",))


def test_a_file_is_read_again_only_after_it_changed(folder, monkeypatch):
    seal, reads = read_sealed(folder, "stage", "key")[1], []
    real = seals.file_digest

    def read(path):
        reads.append(path.name)
        return real(path)

    monkeypatch.setattr(seals, "file_digest", read)
    check_files(folder, seal, ("data",))
    check_files(folder, seal, ("data",))
    assert reads == ["data", "data"], "what was written a moment ago may change within the same tick"
    monkeypatch.setattr(seals, "_SETTLED_NS", 0)
    check_files(folder, seal, ("data",))
    check_files(folder, seal, ("data",))
    assert reads == ["data", "data", "data"]
    (folder / "new").write_bytes(b"Some data")
    (folder / "new").replace(folder / "data")
    with pytest.raises(StaleArtifact, match="data is damaged"):
        check_files(folder, seal, ("data",))
