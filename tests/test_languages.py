import csv
import subprocess
import sys
from pathlib import Path

import pytest
from babel import Locale

from sprachbund.errors import InputError
from sprachbund.languages import canonical, display_name, script_counts, script_of, script_share

BIBLE = Path(__file__).parents[2] / "shared" / "corpora" / "bible-nt" / "languages.csv"
NO_NAME = "no ISO 639 code, BCP-47 tag or English name"


@pytest.mark.parametrize(
    ("given", "tag"),
    [
        ("swh_Latn", "swh_Latn"),
        ("SWH-latn", "swh_Latn"),
        (" sw ", "swh_Latn"),
        ("ukr", "ukr_Cyrl"),
        ("UK", "ukr_Cyrl"),
        ("sr", "srp_Cyrl"),
        ("sr-Latn", "srp_Latn"),
        ("sr-Latn-RS", "srp_Latn"),
        ("zh", "zho_Hans"),
        ("zh-TW", "zho_Hant"),
        ("zh-Hant-TW", "zho_Hant"),
        ("pt-BR", "por_Latn"),
        ("ca-valencia", "cat_Latn"),
        ("Swahili", "swh_Latn"),
        ("brazilian portuguese", "por_Latn"),
        ("Serbian (Latin)", "srp_Latn"),
        ("Chinese (Traditional)", "zho_Hant"),
        ("русский", "rus_Cyrl"),
        ("Kiswahili", "swh_Latn"),
        ("ger", "deu_Latn"),
        ("iw", "heb_Hebr"),
        ("tl", "tgl_Latn"),
        ("azb", "azb_Arab"),
        ("Oji-Cree", "ojs_Latn"),
        ("Toki Pona", "tok_Latn"),
        ("tok_Latn", "tok_Latn"),
    ],
)
def test_every_usual_way_of_naming_a_language_gives_its_canonical_tag(given: str, tag: str) -> None:
    assert canonical(given) == tag


def test_two_letter_codes_of_macrolanguages_mean_the_member_that_corpora_mean() -> None:
    usual = (
        "ar:arb fa:pes ms:zsm ne:npi lv:lvs uz:uzn az:azj mn:khk sq:als no:nob nb:nob zh:zho et:est mg:plt or:ory "
        "ps:pbt ku:kmr yi:ydd om:gaz gn:grn ay:ayr qu:que"
    )
    for pair in usual.split():
        two, three = pair.split(":")
        assert canonical(two).partition("_")[0] == three


def test_an_explicit_three_letter_code_stays_what_it_is() -> None:
    for code in ("est", "que", "swa", "fas", "nor", "ekk", "cmn"):
        assert canonical(code).startswith(f"{code}_")


def test_tags_of_the_bible_corpus_are_canonical_and_have_names() -> None:
    if not BIBLE.exists():
        pytest.skip(f"the Bible corpus is not here: {BIBLE}")
    with BIBLE.open(encoding="utf-8") as file:
        tags = [row["tag"] for row in csv.DictReader(file)]
    assert {"cop_Copt", "syc_Syrc", "chr_Cher"} <= set(tags)
    assert [canonical(tag) for tag in tags] == tags
    names = {tag: display_name(tag) for tag in tags}
    assert all(names.values())
    # A script in brackets says that CLDR finds another one more likely; it does so for Wolaytta alone (Ethiopic).
    assert {tag: name for tag, name in names.items() if "(" in name} == {"wal_Latn": "Wolaytta (Latin)"}


def test_likely_scripts_where_cldr_is_silent() -> None:
    assert [canonical(code) for code in ("syc", "cop", "chr", "pbt")] == [
        "syc_Syrc",
        "cop_Copt",
        "chr_Cher",
        "pbt_Arab",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("swahilli", f"unknown language 'swahilli': {NO_NAME}; did you mean 'Swahili' (swh_Latn)?"),
        ("swh_Latin", "unknown script or region 'Latin' in language 'swh_Latin'; did you mean 'Latn'?"),
        ("sr_Lat", "unknown script or region 'Lat' in language 'sr_Lat'; did you mean 'Latn' or 'Latg' or 'Latf'?"),
        ("sr_cirl", "unknown script or region 'cirl' in language 'sr_cirl'; did you mean 'Cyrl' or 'Cirt'?"),
        ("xx", f"unknown language 'xx': {NO_NAME}; give for example swh_Latn, sw or Swahili"),
    ],
)
def test_an_unknown_language_or_script_is_named_with_the_nearest(given: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        canonical(given)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "given", ["", "Latin America", "train", "und", "mul", "de-", "Proto-Germanic", "qqqqq", "swx1"]
)
def test_what_is_no_language_is_refused(given: str) -> None:
    with pytest.raises(InputError):
        canonical(given)


def test_display_names_are_english_and_lead_back_to_the_tag() -> None:
    named = {
        "sw": "Swahili",
        "sr-Latn": "Serbian (Latin)",
        "npi": "Nepali",
        "tgl": "Tagalog",
        "zh-TW": "Chinese (Traditional)",
    }
    for tag, name in named.items():
        assert display_name(tag) == name
        assert canonical(name) == canonical(tag)
    assert display_name("qaa") == "qaa"  # private use: no name anywhere


def test_english_names_of_all_languages_that_cldr_names_are_understood() -> None:
    names = {name for code, name in Locale("en").languages.items() if code not in ("mul", "und", "zxx")}
    assert len(names) > 500
    for name in names:
        canonical(name)


def test_script_of() -> None:
    assert [script_of(tag) for tag in ("sw", "swh_Latn", "ja", "Hindi")] == ["Latn", "Latn", "Jpan", "Deva"]


def test_script_counts_name_every_script() -> None:
    assert script_counts("ab вгд, e\u0301 12!") == {"Cyrl": 3, "Latn": 3}
    assert script_counts("12 !") == {}


def test_script_share_counts_letters_and_nothing_else() -> None:
    assert script_share("abc вгд, 12!", "Latn") == 0.5
    assert script_share("abc вгд, 12!", "Cyrl") == 0.5
    assert script_share("e\u0301a 2026", "Latn") == 1.0  # the combining accent is Inherited
    assert script_share("हिन्दी", "Deva") == 1.0  # vowel signs are marks of the script
    assert script_share("2026 --", "Latn") == 1.0


def test_script_share_of_composite_scripts() -> None:
    assert script_share("東京タワーです", "Jpan") == 1.0
    assert script_share("서울 特別市", "Kore") == 1.0
    assert script_share("汉字", "Hans") == script_share("漢字", "Hant") == 1.0
    assert script_share("東京タワー", "Hani") == pytest.approx(2 / 4)  # the length mark ー is Common
    assert script_share("東京", "Hrkt") == 0.0


def test_importing_languages_loads_no_library() -> None:
    code = "import sys, sprachbund.languages; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "sprachbund.languages" in loaded
    assert not {"langcodes", "language_data", "babel", "fontTools", "torch"} & set(loaded)
