import numpy as np
import pytest
import torch

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.token_rows import TokenLimits, pad_batch, supervised_tokens, unusable_reason
from clusterucb_core.records import TokenizedSample

LIMITS = TokenLimits(vocabulary=10, max_positions=4)


def sample(ids, labels):
    return TokenizedSample("s", np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64))


def test_the_label_at_position_zero_does_not_count():
    assert supervised_tokens(sample([1, 2, 3], [1, -100, 3])) == 1


@pytest.mark.parametrize(
    ("ids", "labels", "reason"),
    [
        ([], [], "no_supervised_token"),
        ([1, 2], [1, -100], "no_supervised_token"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], "too_long"),
    ],
)
def test_samples_without_a_gradient_are_named_with_a_reason(ids, labels, reason):
    assert unusable_reason(sample(ids, labels), LIMITS)[0] == reason


def test_a_usable_sample_has_no_reason():
    assert unusable_reason(sample([1, 2, 3, 4], [-100, 2, -100, 4]), LIMITS) is None


@pytest.mark.parametrize(("ids", "labels"), [([1, 10], [1, 2]), ([1, 2], [-100, 10]), ([-1, 2], [-100, 2])])
def test_tokens_of_another_vocabulary_are_an_error(ids, labels):
    with pytest.raises(InvalidModel, match="vocabulary of 10"):
        unusable_reason(sample(ids, labels), LIMITS)


def test_labels_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="one length"):
        unusable_reason(sample([1, 2], [1, 2, 3]), LIMITS)


def test_a_padded_batch_lists_what_each_position_predicts():
    batch = pad_batch([sample([1, 2, 3], [1, 2, 3]), sample([4, 5], [4, 5])], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.positions.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [2, 3, 5]
    assert (batch.rows.tolist(), batch.counts.tolist()) == ([0, 0, 1], [2, 1])
