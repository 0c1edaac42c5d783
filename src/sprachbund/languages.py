"""Language tags: ISO 639-3, an underscore, ISO 15924 ("swh_Latn").

Every corpus names languages differently, and the same language under two names becomes two languages of a model
(EleutherAI/oellm-eval issue 65). So every name a user may type is turned into one canonical tag on the way in, and
the label's script can be checked against the text itself, because labels are often wrong (FLORES-200 issue 52).
`langcodes`, `babel` and `fontTools` are imported on first use only: the command line's help must not wait for them.
"""

import re
import unicodedata
from collections import Counter
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any

from sprachbund.errors import InputError

# ISO 639-1 code -> the individual language that corpora mean by it, as in FLORES-200 (NLLB Team 2022, table 1).
# Absent: codes that are individual languages already, and those for which no single member is usual (ff, cr, iu).
_USUAL_MEMBER = {
    "ar": "arb", "ay": "ayr", "az": "azj", "fa": "pes", "kr": "knc", "ku": "kmr", "lv": "lvs", "mg": "plt",
    "mn": "khk", "mo": "ron", "ms": "zsm", "nb": "nob", "ne": "npi", "no": "nob", "om": "gaz", "or": "ory",
    "ps": "pbt", "sh": "srp", "sq": "als", "sw": "swh", "uz": "uzn", "yi": "ydd",
}  # fmt: skip

# Where CLDR's likely subtags are silent, or name a script that no corpus of the language uses.
_SCRIPT = {"azb": "Arab", "grc": "Grek", "hbo": "Hebr", "hbs": "Latn", "sh": "Latn", "syc": "Syrc"}

# Where the name data knows the code only under another one's name.
_NAME = {"hbs": "Serbo-Croatian", "tgl": "Tagalog"}

# ISO 15924 codes that stand for several scripts of Unicode, or for a style of one.
_MEMBERS = {
    "Aran": {"Arab"}, "Cyrs": {"Cyrl"}, "Geok": {"Geor"}, "Hanb": {"Hani", "Bopo"}, "Hans": {"Hani"},
    "Hant": {"Hani"}, "Hrkt": {"Hira", "Kana"}, "Jamo": {"Hang"}, "Jpan": {"Hani", "Hira", "Kana"},
    "Kore": {"Hang", "Hani"}, "Latf": {"Latn"}, "Latg": {"Latn"}, "Syre": {"Syrc"}, "Syrj": {"Syrc"}, "Syrn": {"Syrc"},
}  # fmt: skip

_NOT_A_LANGUAGE = {"mis", "mul", "und", "zxx"}


@lru_cache(maxsize=4096)
def canonical(tag: str) -> str:
    """Return the canonical tag of a language, "swh_Latn", for any usual way of naming it.

    Understood are canonical tags in any case and with "-" or "_", ISO 639-1 and 639-3 codes, BCP-47 tags (region and
    variant are dropped: this package tells languages apart, not countries), English names ("Brazilian Portuguese",
    "Serbian (Latin)") and names in the language itself. Where no script is given it is the likely one (CLDR). A
    two-letter code or a name that covers several languages becomes the one that FLORES-200 means ("sw" and
    "Swahili" -> swh); an explicit three-letter code stays what it is ("que" -> que_Latn). Codes win over names.

    Raises:
        InputError: the language or the script is unknown; the message names the nearest known ones.
    """
    parts = re.split(r"[-_]", tag.strip())
    code = parts[0].lower()
    if re.fullmatch(r"[a-z]{2,3}", code) and (language := _alpha3(code)):
        try:
            return f"{language}_{_script_among(parts[1:], code, tag)}"
        except InputError:
            if named := _by_name(tag):  # "Oji-Cree" begins like a tag
                return named
            raise
    named = _by_name(tag)
    if named is None:
        raise InputError(f"unknown language {tag!r}: no ISO 639 code, BCP-47 tag or English name{_suggestion(tag)}")
    return named


def display_name(tag: str) -> str:
    """Return the English name for output: "Swahili", or "Serbian (Latin)" where the script is not the likely one.

    A language without a known name is called by its code. `canonical` understands the result; only a macrolanguage's
    name ("Persian" for fas) leads to its usual member (pes).
    """
    from langcodes import Language

    code, _, script = canonical(tag).partition("_")
    found = str(Language.get(code, normalize=False).language_name("en"))
    if found.startswith("Unknown"):  # named under its two-letter code
        found = str(Language.get(code).language_name("en"))
    known = "" if found.startswith("Unknown") else re.sub(r" \((individual language|macrolanguage)\)$", "", found)
    name = _NAME.get(code) or known or code
    if script == _likely_script(code):
        return name
    return f"{name} ({Language.make(script=script).script_name('en')})"


def script_of(tag: str) -> str:
    """Return the ISO 15924 code of a language's script, "Latn" for "swh_Latn" and for "sw"."""
    return canonical(tag).partition("_")[2]


def script_share(text: str, script: str) -> float:
    """Return the share, 0 to 1, of the letters of `text` that belong to `script`: a check of the label by the text.

    Letters are Unicode letters and marks (categories L and M), counted with repetition. Characters whose script is
    Common or Inherited (such as combining accents) belong to every script and do not count. Jpan, Kore, Hans and the
    like cover their member scripts. A text without letters gives 1.0: nothing in it contradicts the label.
    """
    members = _MEMBERS.get(script, {script})
    counts = script_counts(text)
    inside = sum(count for found, count in counts.items() if found in members)
    return inside / counts.total() if counts else 1.0


def script_counts(text: str) -> Counter[str]:
    """Return how many letters of `text` belong to each script, by ISO 15924 code, counted as `script_share` does."""
    counts: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if found := _char_script(char):
            counts[found] += count
    return counts


@cache
def _char_script(char: str) -> str:
    """Return the script of a letter or mark, "" for everything that tells no script apart."""
    if unicodedata.category(char)[0] not in "LM":
        return ""
    from fontTools import unicodedata as font_unicodedata

    script = str(font_unicodedata.script(char))
    return "" if script in ("Zyyy", "Zinh", "Zzzz") else script


def _alpha3(code: str) -> str | None:
    """Return the ISO 639-3 code of a two- or three-letter code in lower case, None where there is none."""
    from babel import Locale
    from langcodes import Language, data_dicts, tag_is_valid

    if code in _USUAL_MEMBER:
        return _USUAL_MEMBER[code]
    if code in _NOT_A_LANGUAGE:
        return None
    if len(code) == 2:
        known = data_dicts.LANGUAGE_ALPHA3.get(code) or data_dicts.LANGUAGE_ALPHA3.get(Language.get(code).language)
        return str(known) if known else None
    for alpha2, bibliographic in data_dicts.LANGUAGE_ALPHA3_BIBLIOGRAPHIC.items():
        if code == bibliographic:  # "ger": ISO 639-2/B, which ISO 639-3 does not have
            return str(data_dicts.LANGUAGE_ALPHA3[alpha2])
    # The registry in langcodes lacks the newest codes (tok), some of which CLDR names.
    return code if tag_is_valid(code) or code in Locale("en").languages else None


def _script_among(parts: list[str], code: str, tag: str) -> str:
    """Return the script that the subtags after the language code give, else the likely one there.

    Raises:
        InputError: a subtag is neither script, region nor variant.
    """
    from langcodes import data_dicts, tag_is_valid

    if not parts:
        return _likely_script(code)
    first = parts[0].title()
    # Three letters would be an extended language, and nearly always are a mistyped script: "sr_Lat".
    if not re.fullmatch(r"[A-Za-z]{3}", parts[0]) and tag_is_valid("-".join(["und", *parts])):
        if first in data_dicts.ALL_SCRIPTS:
            return first
        region = next((p.upper() for p in parts if re.fullmatch(r"[A-Za-z]{2}|\d{3}", p)), None)
        return _likely_script(code, region)
    near = get_close_matches(first, data_dicts.ALL_SCRIPTS, n=3, cutoff=0.75)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?"
        if near
        else f"give for example {_alpha3(code)}_{_likely_script(code)}"
    )
    raise InputError(f"unknown script or region {'_'.join(parts)!r} in language {tag!r}; {hint}")


@lru_cache(maxsize=4096)
def _likely_script(code: str, region: str | None = None) -> str:
    """Return the script that a language is mostly written in (CLDR's likely subtags), "Latn" where none is known."""
    from langcodes import Language, data_dicts

    if code in _SCRIPT:
        return _SCRIPT[code]
    language = Language.get(code).language
    if language not in data_dicts.LIKELY_SUBTAGS:
        # Individual languages are missing there when their macrolanguage is present: pbt is written like ps.
        language = data_dicts.MACROLANGUAGES.get(language)
    if language not in data_dicts.LIKELY_SUBTAGS:
        return "Latn"  # by far the most frequent script of the languages for which CLDR has no data
    return str(Language.make(language=language, territory=region).maximize().script)


@cache
def _name_tables() -> tuple[Any, ...]:
    """Return tries from folded names to codes: names in English, then names in any language.

    The second alone is not enough: names that mean different things in different languages, such as "Hindi", are not
    in it.
    """
    from language_data.names import load_trie
    from language_data.util import data_filename

    return tuple(load_trie(data_filename(f"trie/{names_in}/name_to_language.marisa")) for names_in in ("en", "und"))


def _by_name(name: str) -> str | None:
    """Return the canonical tag of a language called `name`, with or without a script in brackets; None if unknown."""
    from langcodes import Language
    from language_data.names import get_trie_value, normalize_name

    bracketed = re.fullmatch(r"(.+?)\s*\((.+)\)", name.strip())
    if bracketed and (plain := _by_name(bracketed[1])):
        try:
            return f"{plain.partition('_')[0]}_{Language.find_name('script', bracketed[2], 'en').script}"
        except LookupError:
            pass  # not a script: "Swahili (individual language)"
    # `langcodes.find` would also take a name that merely begins like a known one ("Latin America" -> Latin).
    folded = normalize_name(name)
    code = next((get_trie_value(table, folded) for table in _name_tables() if folded in table), "")
    # The tables also name proto-languages, under codes of their own: "gem-pro".
    known = re.fullmatch(r"([a-z]{2,3})(-[A-Z][a-z]{3})?(-[A-Z]{2}|-\d{3})?", code)
    return canonical(code) if known and _alpha3(known[1]) else None


def _suggestion(name: str) -> str:
    """Return the end of a sentence that names the known languages nearest to `name`."""
    from babel import Locale

    codes = {code: name for code, name in Locale("en").languages.items() if _alpha3(code.partition("_")[0])}
    if len(name) <= 3:
        near = {code: codes[code] for code in get_close_matches(name.lower(), codes, n=3)}
    else:
        folded = {english.lower(): code for code, english in codes.items()}
        plain = re.split(r"[_(]", name)[0].strip().lower()
        matches = get_close_matches(plain, folded, n=3, cutoff=0.75)
        near = {codes[folded[match]]: canonical(folded[match]) for match in matches}
    hints = [f"{typed!r} ({meant})" for typed, meant in near.items()]
    return f"; did you mean {' or '.join(hints)}?" if hints else "; give for example swh_Latn, sw or Swahili"
