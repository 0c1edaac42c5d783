"""The embedded corpus: text in more than a hundred languages, rendered from the CLDR data in `babel`.

A demo, a test or a first try should need no download. CLDR (unicode.org/cldr, Unicode licence) holds, translated by
native speakers, the names of territories, languages, scripts, currencies, units, months and time zones, and the
patterns that inflect and join them: "pět kilometrů", "за 3 дні", "A, B eller C". Lines composed of those have a small
vocabulary, but real spelling, inflection and function words, so that related languages look related. They are no
running text: results on them are a demonstration, not an evaluation.

Words are preferred to figures throughout, since figures are the same in all languages and say nothing about which
one it is.
"""

import datetime
import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from sprachbund.errors import InputError, nearest
from sprachbund.languages import canonical, script_of, script_share

# Names that a language must have of its own (neither English nor in another script) to be worth training on.
_ENOUGH_NAMES = 400
_MAX_NAME = 60  # characters; the few longer names are definitions
_MIN_LINE, _MIN_LINE_CJK = 60, 30  # characters; lines grow clause by clause until they have as many
_MAX_CLAUSES = 5
_TRIES = 20  # to find a line not yet produced
_CJK = {"Hans", "Hant", "Jpan", "Kore"}

# Everyday units; the rest of CLDR's list is mostly loan words that are alike everywhere.
_UNITS_BY_QUANTITY = {
    "angle": "degree revolution",
    "area": "acre hectare square-centimeter square-foot square-kilometer square-meter square-mile",
    "concentr": "item",
    "consumption": "liter-per-100-kilometer liter-per-kilometer",
    "digital": "byte megabyte",
    "duration": "century day decade hour millisecond minute month quarter second week year",
    "electric": "volt",
    "energy": "foodcalorie joule kilowatt-hour",
    "frequency": "hertz",
    "graphics": "dot pixel",
    "length": "centimeter foot inch kilometer light-year meter mile millimeter nautical-mile point yard",
    "light": "lumen",
    "mass": "carat gram kilogram milligram ounce pound stone tonne",
    "power": "horsepower kilowatt watt",
    "pressure": "atmosphere",
    "speed": "kilometer-per-hour knot meter-per-second mile-per-hour",
    "temperature": "celsius fahrenheit",
    "volume": "barrel cubic-centimeter cubic-kilometer cubic-meter cup cup-metric deciliter drop fluid-ounce gallon "
    "liter milliliter pinch pint tablespoon teaspoon",
}
_UNITS = [f"{quantity}-{unit}" for quantity, units in _UNITS_BY_QUANTITY.items() for unit in units.split()]
_NO_CURRENCY = re.compile("X(?!AF|CD|OF|PF)[A-Z]{2}")  # gold, bond units, test codes
_COUNTS = (1, 2, 3, 4, 5, 7, 11, 20, 100)  # among them every plural class of the usual plural rules
_SECONDS = {"year": 31_536_000, "month": 2_592_000, "week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60}
_FIRST_DATE, _NUM_DATES, _DATE_STEP_DAYS = datetime.date(1950, 1, 5), 366, 73  # 73 is coprime to 7: all weekdays

# How often a clause lists names of a kind, relative to each other. Grammar-rich kinds count more than bare names.
_NAME_WEIGHTS = {
    "territories": 4, "languages": 4, "zones": 3, "currencies": 3, "units": 2, "months": 2, "days": 2, "scripts": 1,
    "cities": 1,
}  # fmt: skip
_CLAUSE_WEIGHTS = {"names": 10, "measures": 5, "amounts": 2, "moments": 4, "dates": 2, "spans": 1}


@dataclass(frozen=True)
class _Phrases:
    """What lines of one locale are composed of: names by kind, and ready phrases by kind of clause."""

    names: dict[str, list[str]]
    ready: dict[str, list[str]]
    openers: list[str]
    list_patterns: list[dict[str, str]]
    span_pattern: str
    min_line: int


def render(locale: str, *, lines: int = 3000, seed: int = 0) -> list[str]:
    """Return `lines` documents of one line, of about 60 to 200 characters, in a CLDR locale ("es", "sr_Latn").

    The same locale, number and seed give the same lines in every process with the same `babel`; other seeds give
    other lines of the same vocabulary. Lines are distinct as long as the locale's vocabulary allows.

    Raises:
        InputError: there is no such locale, or CLDR holds too little text in it. A tag of `locales()` will do as well.
    """
    parsed = _parse(locale)
    phrases = _phrases(str(parsed))
    # A string seeds Random through SHA-512, which unlike hash() is the same in every process.
    rng = random.Random(f"sprachbund cldr {parsed} {seed}")
    result: dict[str, None] = {}
    repeated: list[str] = []
    for _ in range(lines):
        for _ in range(_TRIES):
            line = _line(phrases, rng)
            if line not in result:
                result[line] = None
                break
        else:
            repeated.append(line)
    return [*result, *repeated]


@lru_cache(maxsize=1)
def locales() -> dict[str, str]:
    """Return canonical tag -> CLDR locale of all languages with enough text of their own, in alphabetical order.

    Locales whose names fall back to English or to bare codes are left out. Takes a second the first time.
    """
    from babel.localedata import locale_identifiers

    found: dict[str, str] = {}
    for name in sorted(locale_identifiers(), key=lambda name: (len(name), name)):
        if not re.fullmatch(r"[a-z]+(_[A-Z][a-z]{3})?", name):  # regional variants add next to nothing
            continue
        try:
            tag = canonical(name)
        except InputError:
            continue  # not a language: "root"
        if tag not in found and _num_own_names(name) >= _ENOUGH_NAMES:
            found[tag] = name
    return dict(sorted(found.items()))


def _parse(locale: str) -> Any:
    """Return the babel `Locale`, checked for enough text."""
    from babel import Locale, UnknownLocaleError

    asked = locale.replace("-", "_")
    try:
        parsed = Locale.parse(asked)
    except (UnknownLocaleError, ValueError):
        parsed = None
    if parsed is None or str(parsed).lower() != asked.lower():  # babel drops what it does not know: "sr_Lat" is "sr"
        try:
            named = locales().get(canonical(locale))
        except InputError:
            named = None
        if named is None:
            hint = nearest(locale, [*locales().values(), *locales()]) or "; give for example es or sr_Latn"
            raise InputError(f"no CLDR locale {locale!r}{hint}")
        parsed = Locale.parse(named)
    if (own := _num_own_names(str(parsed))) < _ENOUGH_NAMES:
        raise InputError(
            f"CLDR holds too little text in locale {locale!r}: {own} names of its own, {_ENOUGH_NAMES} are needed; "
            f"choose one of the {len(locales())} of sprachbund.corpora.cldr.locales()"
        )
    return parsed


@lru_cache(maxsize=1024)
def _num_own_names(name: str) -> int:
    """Return how many names of territories, languages, scripts and currencies a locale has of its own."""
    from babel import Locale

    locale = Locale.parse(name)
    return sum(
        len(_own(locale, kind, drop_borrowed=True)) for kind in ("territories", "languages", "scripts", "currencies")
    )


def _own(locale: Any, kind: str, *, drop_borrowed: bool) -> list[str]:
    """Return the usable names of one kind: in the locale's script, on request only its own."""
    names = getattr(locale, kind)
    foreign = [getattr(other, kind) for other in _borrowed_from(locale)] if drop_borrowed else []
    own = [
        _tidy(name)
        for code, name in sorted(names.items())
        if name != code and not _NO_CURRENCY.fullmatch(code) and all(other.get(code) != name for other in foreign)
    ]
    return _usable(own, script_of(str(locale)))


def _borrowed_from(locale: Any) -> list[Any]:
    """Return the locales of other languages that a locale's gaps are filled from: English, and its parent in CLDR."""
    from babel import Locale
    from babel.core import get_global

    parent = get_global("parent_exceptions").get(str(locale))  # "ht" is "fr" throughout, "nn" mostly "no"
    others = [Locale("en")] + ([Locale.parse(parent)] if parent and parent != "root" else [])
    tag = canonical(str(locale))
    return [other for other in others if canonical(str(other)) != tag]


def _usable(names: Iterable[str], script: str) -> list[str]:
    """Return the distinct names that are written in `script`, hold no figures and are not too long."""
    return [
        name
        for name in dict.fromkeys(names)
        if 0 < len(name) <= _MAX_NAME and _in_script(name, script) and not any(map(str.isdigit, name))
    ]


def _in_script(text: str, script: str) -> bool:
    """Tell by its first letter whether a phrase is in `script`; counting all of them would take most of the time."""
    first = next((char for char in text if unicodedata.category(char)[0] == "L"), None)
    return first is not None and script_share(first, script) == 1.0


def _tidy(text: str) -> str:
    """Return `text` with every white space, the no-break ones of CLDR included, as a single space."""
    return " ".join(text.split())


def _isolated(name: str) -> Any:
    """Return a babel `Locale` whose data no other locale shares.

    Locales share what they inherit, and babel (2.18, its issue 1234) writes the aliases it resolves for one of them
    into the shared part: after Uzbek, the months of Hungarian are Uzbek. The text would depend on what was used before.
    """
    from babel import Locale, localedata

    class Isolated(Locale):  # type: ignore[misc]
        """A locale with data of its own."""

        @cached_property
        def _data(self) -> Any:
            with localedata._cache_lock:
                shared, localedata._cache = localedata._cache, {}
                try:
                    return localedata.LocaleDataDict(localedata.load(str(self)))
                finally:
                    localedata._cache = shared

    return Isolated.parse(name)


@lru_cache(maxsize=32)
def _phrases(name: str) -> _Phrases:
    """Return what lines in a locale are composed of; the formatting by babel, the slow part, happens only here."""
    from babel.dates import format_date
    from babel.units import get_unit_name

    locale, root = _isolated(name), _isolated("root")
    script = script_of(name)
    zones = [zone.get("long", {}) for _, zone in sorted(locale.meta_zones.items())]
    # Where CLDR has no long form its rule is to take the short one, which is then often spelled out as well.
    units = (get_unit_name(unit, "long", locale) or get_unit_name(unit, "short", locale) for unit in _UNITS)
    root_units = {get_unit_name(unit, "short", root) for unit in _UNITS}
    # English names of places stay: they are often the true ones. English names of rare languages are fallbacks.
    names = {
        "territories": _own(locale, "territories", drop_borrowed=False),
        "languages": _own(locale, "languages", drop_borrowed=True),
        "scripts": _own(locale, "scripts", drop_borrowed=True),
        "currencies": _own(locale, "currencies", drop_borrowed=True),
        "zones": _usable((_tidy(text) for zone in zones for _, text in sorted(zone.items())), script),
        "units": _usable(
            (_tidy(unit) for unit in units if unit and unit not in root_units and "." not in unit), script
        ),
        "months": _usable((_tidy(month) for month in locale.months["stand-alone"]["wide"].values()), script),
        "days": _usable((_tidy(day) for day in locale.days["stand-alone"]["wide"].values()), script),
        "cities": _usable((_tidy(z["city"]) for _, z in sorted(locale.time_zones.items()) if z.get("city")), script),
    }
    days = [_FIRST_DATE + datetime.timedelta(days=_DATE_STEP_DAYS * i) for i in range(_NUM_DATES)]
    ready = {
        "measures": _measures(locale, root),
        "amounts": _amounts(locale),
        "moments": _moments(locale),
        "dates": [format_date(day, "full", locale) for day in days],
    }
    ready = {kind: [text for text in map(_tidy, texts) if _in_script(text, script)] for kind, texts in ready.items()}
    ready["spans"] = ready["dates"]
    # The language should show from a line's first token on; in some, dates begin with the year.
    openers = [kind for kind, texts in ready.items() if not any(text[0].isdigit() for text in texts)]
    return _Phrases(
        names={kind: found for kind, found in names.items() if len(found) >= 2},
        ready={kind: found for kind, found in ready.items() if len(found) >= 2},
        openers=["names", *openers],
        list_patterns=_list_patterns(locale, root),
        span_pattern=str(locale.interval_formats[None]),
        min_line=_MIN_LINE_CJK if script in _CJK else _MIN_LINE,
    )


def _list_patterns(locale: Any, root: Any) -> list[dict[str, str]]:
    """Return the language's own patterns for "A, B and C" and "A, B or C", else one with commas alone."""
    foreign = [] if locale.language == "en" else [root, _isolated("en")]
    patterns = [
        # Some locales lack the space after the comma, against the practice of their languages (ne: "{0},{1}").
        {part: pattern.replace(",{1}", ", {1}") for part, pattern in locale.list_patterns[style].items()}
        for style in ("standard", "or")
        if all(locale.list_patterns[style]["2"] != other.list_patterns[style]["2"] for other in foreign)
    ]
    return patterns or [dict.fromkeys(("2", "start", "middle", "end"), "{0}, {1}")]


def _measures(locale: Any, root: Any) -> list[str]:
    """Return "5 kilometrů" and the like, for units whose name is not just the international symbol."""
    from babel.units import format_unit

    result = []
    for unit in _UNITS:
        # Where babel has no long form it appends the unit's identifier; CLDR's rule is then to take the short form.
        length = "short" if unit in format_unit(3, unit, "long", locale=locale) else "long"
        if format_unit(3, unit, length, locale=locale) != format_unit(3, unit, "short", locale=root):
            result += [format_unit(count, unit, length, locale=locale) for count in _COUNTS]
    return result


def _amounts(locale: Any) -> list[str]:
    """Return "5 švédských korun" and the like, for the currencies that have a name of their own."""
    from babel.numbers import format_currency

    codes = [
        code
        for code, name in sorted(locale.currencies.items())
        if not (_NO_CURRENCY.fullmatch(code) or any(map(str.isdigit, name)))
    ]
    return [
        format_currency(count, code, "#,##0", locale, currency_digits=False, format_type="name")
        for index, code in enumerate(codes)
        for count in (_COUNTS[index % 5], _COUNTS[5 + index % 4])
    ]


def _moments(locale: Any) -> list[str]:
    """Return "za 5 měsíců", "před 2 lety" and the like; nothing where CLDR has only the root's "+5 y"."""
    from babel.dates import format_timedelta

    texts = [
        format_timedelta(sign * count * seconds, unit, threshold=10**9, add_direction=True, locale=locale)
        for unit, seconds in _SECONDS.items()
        for count in (*range(1, 13), 15, 20, 25, 30)
        for sign in (1, -1)
    ]
    return [text for text in texts if text and text[0] not in "+-−"]


def _line(phrases: _Phrases, rng: random.Random) -> str:
    """Return one line: clauses of different kinds until it is long enough, the first one beginning with a word."""
    kinds = {kind: weight for kind, weight in _CLAUSE_WEIGHTS.items() if kind == "names" or kind in phrases.ready}
    openers = {kind: weight for kind, weight in kinds.items() if kind in phrases.openers}
    name_kinds = {kind: weight for kind, weight in _NAME_WEIGHTS.items() if kind in phrases.names}
    clauses: list[str] = []
    while len(clauses) < 2 or (sum(map(len, clauses)) < phrases.min_line and len(clauses) < _MAX_CLAUSES):
        kind = _choose(kinds if clauses else openers, rng)
        if kind == "names":
            names = phrases.names[_choose(name_kinds, rng)]
            clauses.append(_joined(_some(names, rng, most=4), phrases, rng))
        elif kind == "spans":
            clauses.append(phrases.span_pattern.format(*_some(phrases.ready[kind], rng, most=2)))
        elif kind == "dates":
            clauses.append(rng.choice(phrases.ready[kind]))
        else:
            clauses.append(_joined(_some(phrases.ready[kind], rng, most=3), phrases, rng))
    return _tidy(f"{clauses[0]}: {'; '.join(clauses[1:])}")


def _choose(weights: dict[str, int], rng: random.Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _some(phrases: Sequence[str], rng: random.Random, *, most: int) -> list[str]:
    return rng.sample(phrases, min(len(phrases), rng.randint(2, most)))


def _joined(items: list[str], phrases: _Phrases, rng: random.Random) -> str:
    """Return the items as the language lists them, "A, B und C" or "A, B oder C" (UTS 35, list patterns)."""
    patterns = rng.choice(phrases.list_patterns)
    if len(items) == 2:
        return patterns["2"].format(*items)
    result = patterns["start"].format(items[0], items[1])
    for item in items[2:-1]:
        result = patterns["middle"].format(result, item)
    return patterns["end"].format(result, items[-1])
