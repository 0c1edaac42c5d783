import json
import math
from typing import Any

import numpy as np
import pytest

from sprachbund.evaluation import LanguageScores, build_metrics, perplexity

Text = perplexity.TestText
GROUPS = {"swh_Latn": 0, "ell_Grek": 1, "zul_Latn": 0}
# perplexity over all positions and after burn-in
PERPLEXITIES: dict[str, dict[str, tuple[float, float]]] = {
    "base": {"swh_Latn": (64, 32), "ell_Grek": (64, 32), "zul_Latn": (64, 32)},
    "dense": {"swh_Latn": (32, 16), "ell_Grek": (16, 8), "zul_Latn": (8, 4)},
    "group": {"swh_Latn": (16, 8), "ell_Grek": (8, 6), "zul_Latn": (4, 4.4)},
    "prefix": {"swh_Latn": (24, 8), "ell_Grek": (12, 4), "zul_Latn": (6, 2)},
    "top_k": {"swh_Latn": (32, 16), "ell_Grek": (16, 8), "zul_Latn": (8, 4)},
}
TEXTS = {tag: Text(np.arange(101), 300) for tag in GROUPS}


def scores_of(values: tuple[float, float], *, right: float = 0.0, routed: tuple[float, ...] = ()) -> LanguageScores:
    return LanguageScores(100 * math.log(values[0]), 100, 60 * math.log(values[1]), 60, right, list(routed))


def metrics(*systems: str) -> Any:
    scores = {
        system: {
            tag: scores_of(values, right=75 if tag == "swh_Latn" else 90, routed=(0.75, 0.25))
            for tag, values in PERPLEXITIES[system].items()
        }
        for system in systems
    }
    return build_metrics(scores, TEXTS, GROUPS, facts={"package": "0.1.0", "seed": 7, "moe_layers": [0, 1]})


def everything() -> Any:
    return metrics(*PERPLEXITIES)


def test_schema_1_holds_what_the_design_says() -> None:
    found = everything()
    assert json.loads(json.dumps(found)) == found  # plain JSON values only
    assert (found["schema"], found["package"], found["seed"], found["moe_layers"]) == (1, "0.1.0", 7, [0, 1])
    assert found["groups"] == [["swh_Latn", "zul_Latn"], ["ell_Grek"]]
    assert list(found["languages"]) == list(TEXTS)
    greek = found["languages"]["ell_Grek"]
    assert (greek["group"], greek["bytes"], greek["tokens"]) == (1, 300, 100)
    kinds = ("perplexity", "perplexity_after_burn_in", "bits_per_byte", "bits_per_byte_after_burn_in")
    for scores in (greek, found["average"]):
        assert all(list(scores[kind]) == list(PERPLEXITIES) for kind in kinds)
    assert greek["router_accuracy"] == {"prefix": 0.9, "top_k": 0.9}
    assert greek["router_share"] == {"prefix": [0.75, 0.25], "top_k": [0.75, 0.25]}


def test_scores_of_a_language_are_its_own() -> None:
    swahili = everything()["languages"]["swh_Latn"]
    assert swahili["perplexity"]["prefix"] == pytest.approx(24)
    assert swahili["perplexity_after_burn_in"]["prefix"] == pytest.approx(8)
    # 100 positions of 5 bits each, over 300 bytes; after burn-in 60 positions of 4 bits at 3 bytes each
    assert swahili["bits_per_byte"]["dense"] == pytest.approx(500 / 300)
    assert swahili["bits_per_byte_after_burn_in"]["dense"] == pytest.approx(240 / 180)
    assert swahili["router_accuracy"]["prefix"] == pytest.approx(0.75)


def test_averages_are_geometric_for_perplexity_and_plain_for_bits() -> None:
    average = everything()["average"]
    assert average["perplexity"]["dense"] == pytest.approx(16)  # of 32, 16, 8; their mean would be 18.7
    assert average["perplexity_after_burn_in"]["dense"] == pytest.approx(8)
    assert average["bits_per_byte"]["dense"] == pytest.approx((5 + 4 + 3) / 3 / 3)
    assert average["bits_per_byte_after_burn_in"]["dense"] == pytest.approx((4 + 3 + 2) / 3 / 3)
    assert average["router_accuracy"] == {"prefix": pytest.approx(0.85), "top_k": pytest.approx(0.85)}


def test_changes_are_against_the_dense_control_and_name_the_worst_language() -> None:
    changes = everything()["change_vs_dense"]
    assert list(changes) == ["group", "prefix", "top_k"]
    assert changes["prefix"]["average"] == pytest.approx(-0.5)
    assert changes["prefix"]["average_all_positions"] == pytest.approx(-0.25)
    assert changes["group"]["average"] == pytest.approx((0.5 * 0.75 * 1.1) ** (1 / 3) - 1)
    assert changes["group"]["worst"] == ["zul_Latn", pytest.approx(0.1)]
    assert changes["top_k"]["average"] == pytest.approx(0)


def test_without_a_dense_control_there_is_nothing_to_compare_with() -> None:
    found = metrics("base", "group", "prefix", "top_k")
    assert "change_vs_dense" not in found
    assert list(found["average"]["perplexity"]) == ["base", "group", "prefix", "top_k"]


def test_a_dense_model_alone_has_no_router() -> None:
    found = metrics("base", "dense")
    assert found["change_vs_dense"] == {}
    assert found["average"]["router_accuracy"] == {}
    assert found["languages"]["swh_Latn"]["router_share"] == {}


def test_bits_per_byte_count_the_bytes_of_the_text_not_its_characters() -> None:
    def as_bytes(documents: list[str]) -> list[list[int]]:
        return [list(document.encode()) for document in documents]

    text = perplexity.test_text(["é", "日本"], as_bytes, separator=0, max_tokens=None)
    positions = len(text.tokens) - 1  # 2 + 1 + 6 + 1 tokens, the first one is given
    assert (positions, text.num_bytes) == (9, 8)
    uniform = LanguageScores(positions * 8 * math.log(2), positions, 4 * 8 * math.log(2), 4)  # 8 bits per token
    found = build_metrics({"base": {"jpn_Jpan": uniform}}, {"jpn_Jpan": text}, {"jpn_Jpan": 0}, facts={})
    # all that the model pays, separators too, over the bytes that were written
    assert found["languages"]["jpn_Jpan"]["bits_per_byte"]["base"] == pytest.approx(9 * 8 / 8)
    assert found["languages"]["jpn_Jpan"]["bits_per_byte_after_burn_in"]["base"] == pytest.approx(9)
