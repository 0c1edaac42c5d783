"""What can go wrong in the hands of a user, said in one sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class SprachbundError(Exception):
    """The work could not be done; the message is one sentence for the user (exit status 1)."""


class InputError(SprachbundError):
    """What the user gave is wrong: a file, a recipe, an argument (exit status 2)."""


class DivergedError(SprachbundError):
    """A training diverged: its loss, or what the model predicts, is no number any more."""


def out_of_memory(error: BaseException) -> bool:
    """Is this a want of memory, of the machine's or the accelerator's? torch says so in a RuntimeError's text only."""
    said = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(sign in said for sign in ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED"))
    )


_BREAKS = ("RemoteProtocolError", "ReadError", "ReadTimeout", "IncompleteRead", "ChunkedEncodingError")


def broken_download(what: object, error: BaseException) -> SprachbundError | None:
    """Return the sentence for a download that broke off, which libraries report at the end of a chain of errors."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _BREAKS or "Consistency check failed" in str(cause):
            return SprachbundError(
                f"the download of {str(what)!r} broke off ({brief(cause)}); give the same command again, which fetches "
                "what is missing"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def brief(error: object) -> str:
    """Return what a library's error says, on one line and cut, to stand in brackets in a sentence of ours."""
    said = " ".join(str(error).split())
    return said if len(said) <= 240 else said[:236].rsplit(" ", 1)[0] + " ..."


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return ", did you mean 'x' or 'y'?" for the known names nearest to `name`, or "" where none is near."""
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = [lowered[m] for m in get_close_matches(name.lower(), lowered, n=most, cutoff=0.6)]
    return f", did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""
