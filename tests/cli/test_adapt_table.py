"""The tables at the end of `sprachbund adapt`."""

import math
import re
from typing import Any

import pytest

from sprachbund.cli.adapt_table import print_adaptation


def score(perplexity: float) -> dict[str, float]:
    return {
        "perplexity": perplexity, "perplexity_after_burn_in": perplexity,
        "bits_per_byte": math.log2(perplexity) / 2, "bits_per_byte_after_burn_in": math.log2(perplexity) / 2,
    }  # fmt: skip


FACTS: dict[str, Any] = {
    "path": "lean",
    "languages": {
        "mam_Latn": {
            "parent": {"group": 4, "languages": ["quc_Latn", "cak_Latn"]}, "parameters": 154_000,
            "share_of_dense": 0.39, "warnings": ["its text may be K’iche’"],
        },
    },
    "scores": {
        "swh_Latn": {
            "new": False, "before": {"group": score(32), "counts": score(32)},
            "after": {"group": score(32), "counts": score(32.000256)}, "routed": {"group": 0.0, "counts": 0.0001},
        },
        "zul_Latn": {
            "new": False, "before": {"group": score(64), "counts": score(64)},
            "after": {"group": score(64), "counts": score(64.64)}, "routed": {"group": 0.0, "counts": 0.012},
        },
        "mam_Latn": {
            "new": True, "before": {"group": score(1024), "counts": score(2048)},
            "after": {"group": score(8), "counts": score(16)}, "routed": {"counts": 0.96},
        },
    },
    "forgetting": {
        "limit": 0.001, "worst": {"language": "zul_Latn", "mode": "counts", "change": 0.01}, "holds": False,
    },
}  # fmt: skip


def lines(said: str) -> list[list[str]]:
    """Return the cells of each line, without the drawn borders."""
    return [[cell.strip() for cell in re.split(r"[│┃]", line.strip("│┃ "))] for line in said.splitlines()]


def test_new_and_old_languages_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    print_adaptation(FACTS)
    said = capsys.readouterr().out
    found = lines(said)
    assert ["mam_Latn", "4: quc_Latn cak_Latn", "group", "154,000", "39.0%", "5.000", "1.500", "1024.00", "8.00"] in [
        row[:9] for row in found
    ]
    assert ["counts", "", "", "5.500", "2.000", "2048.00", "16.00", "96.0%"] in found
    assert ["counts", "zul_Latn", "+0.50%", "+1.00%", "1.20%"] in found
    assert ["group", "", "0", "0", "0.00%"] in found
    assert said.splitlines()[-1] == "warning: its text may be K’iche’"


def test_without_old_languages_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        **FACTS,
        "scores": {"mam_Latn": FACTS["scores"]["mam_Latn"]},
        "forgetting": {"limit": 0.001, "worst": None, "holds": True},
    }
    print_adaptation(facts)
    said = capsys.readouterr().out
    assert "what the old languages lost was not measured: their corpora were not at hand" in said
    assert "mam_Latn" in said
