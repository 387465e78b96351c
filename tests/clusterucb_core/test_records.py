import dataclasses

import numpy as np
import pytest
from pydantic import ValidationError

from clusterucb_core import records
from clusterucb_core.records import ArtifactRef, Clustering, Exclusion, Message, Sample

TABLES = [value for value in vars(records).values() if dataclasses.is_dataclass(value)]


def test_every_record_is_frozen():
    assert len(TABLES) >= 8
    sample = Sample("a", "pool", (Message("user", "hi"), Message("assistant", "ho")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.source = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert all(kind.__dataclass_params__.frozen for kind in TABLES)


def test_an_exclusion_survives_the_way_through_json():
    exclusion = Exclusion("a", "leak", "same_prompt", "test row 3")
    assert Exclusion(**dataclasses.asdict(exclusion)) == exclusion


def test_an_artifact_reference_survives_json_and_refuses_what_it_does_not_know():
    ref = ArtifactRef(stage="tokens", fingerprint="ab", path="/somewhere")
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref
    with pytest.raises(ValidationError, match="content"):
        ArtifactRef.model_validate({**ref.model_dump(), "content": "x"})


def test_a_clustering_holds_labels_and_centres():
    clustering = Clustering(np.array([0, 1, 1]), np.eye(2))
    assert clustering.labels.max() + 1 == len(clustering.centers)
