"""What grouping.json says must be writable, whichever engine answered."""

import json

import numpy as np
import pytest

from sprachbund.grouping.decide import Evidence, as_dict, decide
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.recipe import Groups


@pytest.mark.parametrize("objective", ["mean", "bottleneck", "lexicographic", "greedy"])
@pytest.mark.parametrize(("num_languages", "num_groups"), [(8, 2), (24, 6), (24, 12)], ids=["exact", "search", "pairs"])
def test_every_decision_is_json(objective: str, num_languages: int, num_groups: int) -> None:
    drawn = np.random.default_rng(0).uniform(-1, 1, (num_languages, num_languages))
    values = (drawn + drawn.T) / 2
    np.fill_diagonal(values, 1.0)
    similarity = Similarity(tuple(f"l{i:02d}" for i in range(num_languages)), values)
    settings = Groups.model_validate({"count": num_groups, "objective": objective})
    facts = as_dict(decide(similarity, settings, Evidence(), seed=0))
    assert json.loads(json.dumps(facts)) == facts
    assert isinstance(facts["proven"], bool)
