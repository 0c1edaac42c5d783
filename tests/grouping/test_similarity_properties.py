"""Whatever stands in a similarity file: a similarity, or one sentence."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sprachbund.errors import InputError
from sprachbund.grouping import Similarity, read_similarity, write_similarity

CELLS = ["", "a", "b", "language", "0.5", "1", "-0", "nan", "inf", "1e400", "0,5", '"', "\0", "١", "0x1", "a b", "1_0"]
PIECES = [",", "\n", "\r\n", "\r", "\ufeff", ";", "\t", *CELLS]
SOUND = "language,a,b,c\na,1,0.5,0.2\nb,0.5,1,0.1\nc,0.2,0.1,1\n"
edits = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4), st.sampled_from(PIECES)), max_size=3)


def read(data: bytes) -> Similarity | None:
    """The similarity in these bytes, None where they are refused; another error fails the test."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "similarity.csv"
        path.write_bytes(data)
        try:
            found = read_similarity(path)
        except InputError as error:
            said = str(error)
            assert said.startswith(str(path))
            assert "\n" not in said
            return None
        assert len(found.tags) == len(set(found.tags)) >= 2
        assert all(found.tags)
        assert np.isfinite(found.values_LL).all()
        assert (found.values_LL == found.values_LL.T).all()
        write_similarity(path, found)
        again = read_similarity(path)
        assert again.tags == found.tags
        assert (again.values_LL == found.values_LL).all()
        return found


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=30).map(lambda p: "".join(p).encode()))
@example(b"language,a,b\na,1,\0\nb,0,1\n")
@example(b'language,a,b\na,1,0.5\n"b')
def test_any_bytes_are_a_similarity_or_one_sentence(data: bytes) -> None:
    read(data)


@settings(max_examples=200, deadline=None)
@given(edits)
def test_a_changed_file_is_a_similarity_or_one_sentence(edits: list[tuple[int, int, str]]) -> None:
    text = SOUND
    for place, length, piece in edits:
        text = text[:place] + piece + text[place + length :]
    found = read(text.encode())
    assert found is not None or text != SOUND


cells = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(CELLS), st.booleans()), max_size=2)


@settings(max_examples=150, deadline=None)
@given(cells)
@example([(1, 1, "inf", False)])
@example([(1, 2, "nan", True)])
def test_changed_cells_are_a_similarity_or_one_sentence(cells: list[tuple[int, int, str, bool]]) -> None:
    grid = [line.split(",") for line in SOUND.splitlines()]
    for row, column, cell, mirrored in cells:
        grid[row][column] = cell
        if mirrored:
            grid[column][row] = cell
    read("".join(",".join(row) + "\n" for row in grid).encode())


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.data())
def test_every_sound_matrix_is_read_back_to_the_bit(num_languages: int, data: st.DataObject) -> None:
    # What a line of CSV can hold: line ends and NUL are no part of a label, and outer spaces are not kept.
    letters = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))
    label = st.text(letters, min_size=1, max_size=6).filter(lambda label: label == label.strip())
    tags = data.draw(st.lists(label, min_size=num_languages, max_size=num_languages, unique=True))
    number = st.floats(-1e300, 1e300)
    rows = data.draw(st.lists(number, min_size=num_languages**2, max_size=num_languages**2))
    upper_LL = np.triu(np.array(rows).reshape(num_languages, num_languages))
    values_LL = upper_LL + np.triu(upper_LL, 1).T
    between = values_LL[~np.eye(num_languages, dtype=bool)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "similarity.csv"
        write_similarity(path, Similarity(tuple(tags), values_LL))
        found = read(path.read_bytes())
    if num_languages > 2 and (between == between[0]).all():
        assert found is None
        return
    assert found is not None
    assert found.tags == tuple(tags)
    assert (found.values_LL == values_LL).all()
