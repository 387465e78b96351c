import numpy as np
import pytest

from clusterucb_core.artifacts import find_artifact, new_artifact, read_manifest
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.lm.chat import chat_format, tokenize
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.lm.tokens import open_tokens, tokens_fingerprint, write_tokens
from clusterucb_core.records import Message, Sample


def sample(sample_id: str, question: str, answer: str | None) -> Sample:
    turns = (Message("user", question),)
    return Sample(sample_id, "test", turns if answer is None else (*turns, Message("assistant", answer)))


SAMPLES = [
    sample("b", "Hello", "I am fine."),
    sample("a", "What is two plus two? " * 9, "four"),
    sample("x", "no answer", None),
    *(sample(f"n{number}", f"two plus {number}?", f"the answer is {number}") for number in range(600)),
]


@pytest.fixture
def chat(make_tokenizer):
    return chat_format(make_tokenizer(adds_bos=True), None)


def test_a_table_gives_back_what_tokenize_gives(tmp_path, chat):
    table = open_tokens(write_tokens(tmp_path, "key", iter(SAMPLES), chat, max_length=40))
    assert table.sample_ids == [one.sample_id for one in SAMPLES if one.sample_id != "x"]
    for one in SAMPLES[:2] + SAMPLES[-3:]:
        direct = tokenize(chat, one.sample_id, one.messages, max_length=40)
        stored = table.get(one.sample_id)
        np.testing.assert_array_equal(stored.input_ids, direct.input_ids)
        np.testing.assert_array_equal(stored.labels, direct.labels)
        row = table.rows[one.sample_id]
        assert table.lengths[row] == direct.input_ids.size
        assert table.supervised_counts[row] == (direct.labels != -100).sum()


def test_the_manifest_counts_what_was_kept_cut_and_excluded(tmp_path, chat):
    ref = write_tokens(tmp_path, "key", SAMPLES, chat, max_length=40)
    table, manifest = open_tokens(ref), read_manifest(ref)
    assert (manifest["n"], manifest["excluded"], manifest["truncated"]) == (602, 1, 1)
    assert manifest["tokens"] == table.lengths.sum() == table.input_ids.size
    assert manifest["supervised_tokens"] == table.supervised_counts.sum()
    assert [(one.sample_id, one.reason) for one in table.exclusions] == [("x", "no_supervised_token")]


def test_the_flat_arrays_stay_on_disk(tmp_path, chat):
    table = open_tokens(write_tokens(tmp_path, "key", SAMPLES, chat, max_length=40))
    assert isinstance(table.input_ids, np.memmap)
    assert (table.input_ids.dtype, table.supervised.dtype) == (np.int32, np.bool_)


def test_a_table_that_is_there_is_not_written_again(tmp_path, chat):
    first = write_tokens(tmp_path, "key", SAMPLES[:1], chat, max_length=40)

    def never():
        raise AssertionError("the samples were read again")
        yield

    assert write_tokens(tmp_path, "key", never(), chat, max_length=40) == first


def test_taking_keeps_the_order_asked_for(tmp_path, chat):
    table = open_tokens(write_tokens(tmp_path, "key", SAMPLES[:2], chat, max_length=40))
    assert [one.sample_id for one in table.take(["a", "b", "a"])] == ["a", "b", "a"]


def test_a_sample_without_tokens_is_an_error_that_says_why(tmp_path, chat):
    table = open_tokens(write_tokens(tmp_path, "key", SAMPLES[:3], chat, max_length=40))
    with pytest.raises(MissingArtifact, match="sample x has no tokens: no_supervised_token"):
        table.get("x")
    with pytest.raises(MissingArtifact, match="sample unknown is none of the 2"):
        table.get("unknown")


def test_a_table_of_nothing_but_exclusions_opens(tmp_path, chat):
    table = open_tokens(write_tokens(tmp_path, "key", SAMPLES[2:3], chat, max_length=40))
    assert table.sample_ids == []
    assert table.supervised_counts.size == table.lengths.size == 0
    assert len(table.exclusions) == 1


@pytest.mark.parametrize("name", ["input_ids.npy", "supervised.npy", "offsets.npy", "sample_ids.json"])
@pytest.mark.parametrize("way", ["flipped", "truncated", "deleted"])
def test_a_damaged_table_is_refused_and_written_again(tmp_path, chat, damage, name, way):
    ref = write_tokens(tmp_path, "key", SAMPLES[:2], chat, max_length=40)
    path = tmp_path / "tokens" / "key" / name
    whole = path.read_bytes()
    damage[way](path)
    with pytest.raises(StaleArtifact, match=f"{path} is damaged"):
        open_tokens(ref)
    assert write_tokens(tmp_path, "key", SAMPLES[:2], chat, max_length=40) == ref
    assert path.read_bytes() == whole


def test_a_table_whose_files_do_not_fit_each_other_is_stale(tmp_path):
    with new_artifact(tmp_path, "tokens", "key", {"tokens": 2}) as folder:
        (folder / "sample_ids.json").write_text('["a"]')
        (folder / "exclusions.json").write_text("[]")
        for name, values in (("offsets", [0, 1, 2]), ("input_ids", [5, 6]), ("supervised", [0, 1])):
            np.save(folder / f"{name}.npy", np.array(values))
    with pytest.raises(StaleArtifact, match="1 ids, 3 offsets"):
        open_tokens(find_artifact(tmp_path, "tokens", "key"))


def test_the_key_follows_template_text_length_limit_model_and_samples_only(tmp_path):
    settings = ModelSettings(base="m")
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}", encoding="utf-8")
    from_file = settings.model_copy(update={"chat_template": str(path)})
    from_text = settings.model_copy(update={"chat_template": "{{ messages }}"})
    key = tokens_fingerprint(settings, "model", "samples")
    assert tokens_fingerprint(settings.model_copy(update={"dtype": "float32"}), "model", "samples") == key
    assert tokens_fingerprint(from_file, "model", "samples") == tokens_fingerprint(
        from_text, "model", "samples"
    )
    shorter = settings.model_copy(update={"max_length": 100})
    others = [(from_text, "model", "samples"), (shorter, "model", "samples"), (settings, "m2", "samples")]
    keys = {
        key,
        tokens_fingerprint(settings, "model", "s2"),
        *(tokens_fingerprint(*other) for other in others),
    }
    assert len(keys) == 5
