import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from clusterucb_core.errors import InvalidPool
from clusterucb_core.pool.sources import (
    PoolSettings,
    SourceSettings,
    ingest_fingerprint,
    source_files,
    source_name,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "sub/c.json.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return tmp_path


def _settings(*sources: str | dict[str, str], **more: object) -> PoolSettings:
    dicts = [{"path": source} if isinstance(source, str) else source for source in sources]
    return PoolSettings.model_validate({"sources": dicts, **more})


def _names(folder: Path, *sources: str | dict[str, str]) -> list[tuple[str, str]]:
    return [(file.path.name, file.name) for file in source_files(_settings(*sources), folder)]


def test_sources_keep_their_order_and_patterns_are_sorted(folder: Path) -> None:
    expected = [("c.json.gz", "c"), ("a.jsonl", "a"), ("b.jsonl", "b")]
    assert _names(folder, "sub/c.json.gz", "*.jsonl") == expected
    assert sorted(_names(folder, "**/*.json*")) == sorted(expected)


def test_a_name_holds_for_every_file_of_its_pattern(folder: Path) -> None:
    assert _names(folder, {"path": "*.jsonl", "name": "x"}) == [("a.jsonl", "x"), ("b.jsonl", "x")]


def test_a_file_that_two_sources_name_counts_once_under_the_first(folder: Path) -> None:
    (folder / "link.jsonl").symlink_to(folder / "a.jsonl")
    sources = ({"path": "a.jsonl", "name": "first"}, "*.jsonl", str(folder / "b.jsonl"))
    assert _names(folder, *sources) == [("a.jsonl", "first"), ("b.jsonl", "b")]


def test_absolute_paths_and_patterns_need_no_base_folder(folder: Path) -> None:
    assert _names(Path("/nowhere"), str(folder / "*.jsonl"), str(folder / "sub/c.json.gz")) == [
        ("a.jsonl", "a"),
        ("b.jsonl", "b"),
        ("c.json.gz", "c"),
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_found(folder: Path) -> None:
    (folder / "d[1].jsonl").write_text("x")
    assert _names(folder, "d[1].jsonl") == [("d[1].jsonl", "d[1]")]


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.jsonl.gz", "a"), ("v1.2_x.tsv", "v1.2_x"), ("A.JSON.ZST", "A"), ("x.json.jsonl", "x.json")],
)
def test_the_name_of_a_file_is_what_stands_before_its_container(name: str, stem: str) -> None:
    assert source_name(Path(name)) == stem


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none/*.jsonl", "matches no file"),
        ("gone.jsonl", "matches no file"),
        ("sub", "is a folder"),
        ("s*", "matches no file"),
        ("note.txt", "no known suffix"),
        ("*", "no known suffix"),
    ],
)
def test_a_source_that_cannot_work_is_an_error_that_says_why(folder: Path, path: str, message: str) -> None:
    (folder / "note.txt").write_text("x")
    with pytest.raises(InvalidPool, match=message):
        source_files(_settings(path), folder)


def test_settings_without_a_source_or_with_an_unknown_format_are_refused() -> None:
    with pytest.raises(ValidationError):
        _settings()
    with pytest.raises(ValidationError, match="question_answer"):
        _settings({"path": "a.jsonl", "format": "xml"})


def test_every_setting_is_described_for_the_form() -> None:
    for model in (PoolSettings, SourceSettings):
        for field in model.model_fields.values():
            assert field.title
            assert field.description


def _key(folder: Path, *sources: str | dict[str, str], **more: object) -> str:
    settings = _settings(*sources, **more)
    return ingest_fingerprint(settings, source_files(settings, folder))


def test_the_fingerprint_follows_content_names_formats_and_rules(folder: Path) -> None:
    key = _key(folder, "*.jsonl")
    others = [
        _key(folder, "a.jsonl"),
        _key(folder, "b.jsonl", "a.jsonl"),
        _key(folder, {"path": "*.jsonl", "name": "x"}),
        _key(folder, {"path": "*.jsonl", "format": "alpaca"}),
        _key(folder, "*.jsonl", min_chars=2),
        _key(folder, "*.jsonl", dedupe="content"),
    ]
    (folder / "a.jsonl").write_text("other")
    assert len({key, *others, _key(folder, "*.jsonl")}) == 8


def test_the_fingerprint_follows_neither_the_folder_nor_the_sample_limit(folder: Path) -> None:
    moved = folder / "moved"
    moved.mkdir()
    (moved / "a.jsonl").write_bytes((folder / "a.jsonl").read_bytes())
    assert _key(moved, "a.jsonl", max_samples=5) == _key(folder, "a.jsonl")


def test_a_file_that_vanished_is_an_error(folder: Path) -> None:
    settings = _settings("a.jsonl")
    files = source_files(settings, folder)
    (folder / "a.jsonl").unlink()
    with pytest.raises(InvalidPool, match="cannot be read"):
        ingest_fingerprint(settings, files)


def test_a_file_whose_name_no_table_can_hold_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")).touch()
    with pytest.raises(InvalidPool, match=r"is not UTF-8, so no table can hold it; rename it"):
        _names(tmp_path, "*.jsonl")


def test_a_path_longer_than_any_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPool, match="is no path"):
        _names(tmp_path, "x" * 5000 + ".jsonl")
