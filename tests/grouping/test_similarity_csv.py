import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sprachbund.errors import InputError
from sprachbund.grouping import Similarity, read_similarity, write_similarity


def test_round_trip_is_exact(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3))
    similarity = Similarity(("swh_Latn", "a,b", "Ελληνικά", "x"), rows @ rows.T / 3)
    path = tmp_path / "new" / "similarity.csv"
    write_similarity(path, similarity)
    again = read_similarity(path)
    assert again.tags == similarity.tags
    assert again.values_LL.dtype == np.float64
    np.testing.assert_array_equal(again.values_LL, similarity.values_LL)
    assert [entry.name for entry in path.parent.iterdir()] == ["similarity.csv"]


def test_file_as_it_is_documented(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_similarity(path, Similarity(("swh", "zul"), np.array([[1.0, 0.25], [0.25, 1.0]])))
    assert path.read_bytes() == b"language,swh,zul\nswh,1.0,0.25\nzul,0.25,1.0\n"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.csv"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("sprachbund.files.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_similarity(path, Similarity(("a", "b"), np.eye(2)))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_spreadsheet_file_with_two_decimals_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes("\ufefflang,de,nl\r\nde, 1.00,.10\r\n\r\nnl,0.10, 1.00\r\n".encode())
    similarity = read_similarity(path)
    assert similarity.tags == ("de", "nl")
    np.testing.assert_array_equal(similarity.values_LL, [[1.0, 0.1], [0.1, 1.0]])


def test_rounding_between_the_halves_is_averaged(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("language,a,b\na,1,0.5000008\nb,0.5,1\n")
    values_LL = read_similarity(path).values_LL
    assert values_LL[0, 1] == values_LL[1, 0] == pytest.approx(0.5000004)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the file is empty"),
        ("language\n", "line 1: found 0 language(s) in the header"),
        ("language,a\na,1\n", "line 1: found 1 language(s) in the header"),
        ("language;a;b\na;1;0\nb;0;1\n", "line 1: found 0 language(s) in the header"),
        ("language,a,\na,1,0\n,0,1\n", "line 1: column 3 has no label"),
        ("language,a,a\na,1,0\na,0,1\n", "line 1: the language 'a' occurs twice"),
        ("language,a,b\nb,1,0\na,0,1\n", "line 2: row 'b' stands where the header says 'a'"),
        ("language,a,b\na,1,0\nc,0,1\n", "line 3: row 'c' stands where the header says 'b'"),
        ("language,a,b\na,1,0\nb,0\n", "line 3: row 'b' has 1 values for 2 languages"),
        ("language,a,b\na,1,0,5\nb,0,1\n", "line 2: row 'a' has 3 values for 2 languages"),
        ("language,a,b\na,1,0\n", "line 2: the file ends after 1 of 2 rows; add the row of 'b'"),
        ("language,a,b\na,1,0\nb,0,1\nc,0,0\n", "line 4: row 'c' is one more than the 2 columns"),
        ("language,a,b\na,1,nan\nb,nan,1\n", "line 2: found 'nan' for 'a' and 'b'"),
        ("language,a,b\na,1,0\nb,inf,1\n", "line 3: found 'inf' for 'b' and 'a'"),
        ("language,a,b\na,1,high\nb,0,1\n", "line 2: found 'high' for 'a' and 'b'"),
        ("language,a,b\na,1,\nb,0,1\n", "line 2: found '' for 'a' and 'b'"),
        ("language,a,b\na,1,0.5\nb,0.4,1\n", "line 3: 'b' and 'a' have 0.4 here but 0.5 in line 2"),
        ("language,a,b,c\na,1,0.5,0.5\nb,0.5,1,0.5\nc,0.5,0.5,1\n", "lines 2 to 4: every two languages have the sim"),
        ("language,a,b,c\na,0,0,0\nb,0,0,0\nc,0,0,0\n", "lines 2 to 4: every two languages have the similarity 0,"),
        ('language,a,b\na,"' + "1" * 200_000 + '",0\nb,0,1\n', "line 2: not valid CSV"),
    ],
)
def test_bad_files_are_named_with_their_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_similarity(path)
    assert str(caught.value).startswith(f"{path}, {message}")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        read_similarity(tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_bytes(b"language,fran\xe7ais,b\n")
    with pytest.raises(InputError, match=r"latin\.csv: byte 13 is not UTF-8"):
        read_similarity(tmp_path / "latin.csv")


def test_import_needs_no_torch() -> None:
    code = "import sys, sprachbund.grouping; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
