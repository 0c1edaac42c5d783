import os
import subprocess
import sys

import pytest

from sprachbund.corpora.cldr import locales, render
from sprachbund.errors import InputError
from sprachbund.languages import canonical, script_of, script_share

ROMANCE_GERMANIC_SLAVIC = [
    "es",
    "pt",
    "it",
    "gl",
    "de",
    "nl",
    "sv",
    "da",
    "cs",
    "sk",
    "hr",
    "sl",
    "ru",
    "uk",
    "be",
    "bg",
]
INDIC_TURKIC = ["hi", "mr", "ne", "bn", "tr", "az", "uz", "kk"]
DEMO = [*ROMANCE_GERMANIC_SLAVIC, *INDIC_TURKIC]


def rendered_elsewhere(names: list[str], hash_seed: str) -> str:
    code = (
        "import sys\nfrom sprachbund.corpora.cldr import render\n"
        "texts = {name: render(name, lines=40, seed=3) for name in sys.argv[1:]}\n"
        "sys.stdout.buffer.write(repr([texts[name] for name in sorted(texts)]).encode())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", code, *names]
    return subprocess.run(command, capture_output=True, check=True, env=environment).stdout.decode()


def test_text_depends_on_neither_process_nor_hash_seed_nor_what_was_rendered_before() -> None:
    # Uzbek and Hebrew come before Hungarian in one of the processes: babel would pass their months on to Hungarian.
    first = rendered_elsewhere(["uz", "he", "hu"], "1")
    assert first == rendered_elsewhere(["hu", "he", "uz"], "2")
    assert first == repr([render(name, lines=40, seed=3) for name in ("he", "hu", "uz")])


def test_months_are_the_language_s_own_after_another_language() -> None:
    render("uz", lines=1)
    text = " ".join(render("hu", lines=1000))
    assert "március" in text
    assert "yanvar" not in text


def test_seeds_give_different_lines() -> None:
    assert not set(render("es", lines=500)) & set(render("es", lines=500, seed=1))


def test_a_hundred_languages_under_canonical_tags() -> None:
    known = locales()
    assert len(known) >= 100
    assert all(canonical(tag) == tag == canonical(locale) for tag, locale in known.items())
    assert known["srp_Cyrl"] == "sr"
    assert known["srp_Latn"] == "sr_Latn"
    # "ht" is French throughout and "nn" mostly Bokmål: not text in those languages.
    assert not {"hat_Latn", "nno_Latn"} & set(known)
    assert {canonical(name) for name in DEMO} <= set(known)


@pytest.mark.parametrize("locale", DEMO)
def test_demo_text_is_in_its_script_varied_and_mostly_words(locale: str) -> None:
    lines = render(locale, lines=1000)
    text = "".join(lines)
    assert len(lines) == 1000
    assert len(set(lines)) >= 900
    assert script_share(text, script_of(locale)) >= 0.9
    assert sum(map(str.isdigit, text)) / len(text) < 0.1
    assert all(line == " ".join(line.split()) for line in lines)
    assert 60 <= sorted(map(len, lines))[500] <= 200


def test_lines_begin_with_words() -> None:
    for locale in DEMO:
        share = sum(line[0].isdigit() for line in render(locale, lines=300)) / 300
        assert share == 0, locale  # not even the dates that begin with the year (ne, kk)


def test_spanish_uses_its_own_grammar_and_no_english() -> None:
    text = "\n".join(render("es", lines=2000))
    assert " o " in text
    assert " y " in text
    assert "hace 2 años" in text
    assert "dentro de " in text
    assert " and " not in text
    assert " or " not in text


def test_english_joining_words_do_not_leak_into_languages_without_their_own() -> None:
    for locale in ("ckb", "ug"):  # CLDR's lists for these are English or the root's
        text = "\n".join(render(locale, lines=300))
        assert " or " not in text
        assert " and " not in text


def test_a_canonical_tag_a_bcp47_tag_and_a_region_will_do() -> None:
    assert render("spa_Latn", lines=3) == render("es", lines=3)
    assert render("sr-Latn", lines=3) == render("sr_Latn", lines=3)
    assert script_share("".join(render("sr_Latn", lines=50)), "Latn") > 0.99
    assert len(render("pt-PT", lines=3)) == 3


def test_an_unknown_locale_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^no CLDR locale 'sr_Lat', did you mean .*'sr_Latn'.*\?$"):
        render("sr_Lat")
    with pytest.raises(InputError, match=r"^no CLDR locale 'xx'"):
        render("xx")


def test_a_locale_with_too_little_text_says_how_little() -> None:
    with pytest.raises(InputError, match=r"^CLDR holds too little text in locale 'ii': \d+ names of its own, 400 are"):
        render("ii")
