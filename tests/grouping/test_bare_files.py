import json
from pathlib import Path

import pytest

from sprachbund.cli.bare import group_file, layers_file
from sprachbund.errors import InputError

SIMILARITY = """language,de,ru,nl,uk,ka
de,1,.1,.5,0,.05
ru,.1,1,.1,.75,.05
nl,.5,.1,1,0,.05
uk,0,.75,0,1,.05
ka,.05,.05,.05,.05,1
"""

GROUPS = """\
group  size    mean     min  languages
    0     2  0.7500  0.7500  ru uk
    1     2  0.5000  0.5000  de nl
    2     1       -       -  ka
  all     5  0.6250  0.5000  (greedy-seeded)"""

LAYERS = """\
layer        norm  normalised  experts
    0         0.5       0.000       no
    1       0.875       0.750      yes
    2           1       1.000      yes
2 of 3 layers have experts at epsilon 0.6; bitmask 6"""


@pytest.fixture
def similarity_path(tmp_path: Path) -> Path:
    path = tmp_path / "similarity.csv"
    path.write_text(SIMILARITY)
    return path


def write_norms(path: Path, *rows: list[float]) -> Path:
    path.write_text(json.dumps({f"l{i}": {"delta_norm_ffn": row} for i, row in enumerate(rows)}))
    return path


def test_groups_as_a_table(similarity_path: Path) -> None:
    assert group_file(similarity_path, num_groups=3, method="greedy-seeded", as_json=False) == GROUPS


def test_groups_as_json(similarity_path: Path) -> None:
    assert json.loads(group_file(similarity_path, num_groups=3, method="greedy-exhaustive", as_json=True)) == {
        "groups": [["ru", "uk"], ["de", "nl"], ["ka"]],
        "method": "greedy-exhaustive",
        "mean_similarity": 0.625,
        "min_similarity": 0.5,
        "sizes": [2, 2, 1],
    }


def test_singletons_have_no_similarity(similarity_path: Path) -> None:
    content = json.loads(group_file(similarity_path, num_groups=5, method="greedy-seeded", as_json=True))
    assert content["mean_similarity"] is None
    assert content["min_similarity"] is None


def test_layers_as_a_table(tmp_path: Path) -> None:
    path = write_norms(tmp_path / "norms.json", [0.25, 0.75, 1.0], [0.75, 1.0, 1.0])
    assert layers_file(path, epsilon=0.6, as_json=False) == LAYERS


def test_layers_as_json(tmp_path: Path) -> None:
    path = write_norms(tmp_path / "norms.json", [0.5, 0.875, 1.0])
    assert json.loads(layers_file(path, epsilon=0.6, as_json=True)) == {
        "layers": [1, 2],
        "bitmask": 6,
        "epsilon": 0.6,
        "norms": [0.5, 0.875, 1.0],
        "normalised": [0.0, 0.75, 1.0],
        "warning": None,
    }


def test_noise_is_said_in_both_forms(tmp_path: Path) -> None:
    path = write_norms(tmp_path / "norms.json", [1.0, 1.01])
    warning = (
        "The norms of the layers differ by 1.0% of their mean only (below 5%): "
        "epsilon reads noise here, so give experts to all layers or choose the number of layers."
    )
    assert layers_file(path, epsilon=0.6, as_json=False).splitlines()[-1] == f"warning: {warning}"
    assert json.loads(layers_file(path, epsilon=0.6, as_json=True))["warning"] == warning


def test_user_mistakes_reach_the_caller(similarity_path: Path) -> None:
    with pytest.raises(InputError, match="ask for 1 to 5"):
        group_file(similarity_path, num_groups=6, method="greedy-seeded", as_json=True)
    with pytest.raises(InputError, match=r"line 1: not valid JSON"):
        layers_file(similarity_path, epsilon=0.6, as_json=True)
