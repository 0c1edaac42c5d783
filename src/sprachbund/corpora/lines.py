"""The lines of a stream of bytes, whatever ends them, and never more of them in memory than the longest may have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def split_lines(chunks: Iterable[bytes], *, longest: int) -> Iterator[bytes | None]:
    r"""Yield the lines without their ends (\n, \r\n, \r) and byte-order marks; None for one over `longest` bytes.

    A mark may begin any line: files that were put together have it in the middle.

    Why no other character ends a line: U+2028 and its like may stand inside a JSON string, where \r and \n may not. Of
    a line that is too long no more than `longest` bytes are held; its None comes as soon as that is known, so that a
    reader who stops there need not read its rest.
    """
    held: list[bytes] = []
    size, too_long = 0, False
    for chunk in _with_line_feeds(chunks):
        for place, piece in enumerate(chunk.split(b"\n")):
            if place > 0:  # a line ended before this piece
                if not too_long:
                    yield b"".join(held).removeprefix(BYTE_ORDER_MARK)
                held, size, too_long = [], 0, False
            size += len(piece)
            if too_long:
                continue
            if size > longest:
                held, too_long = [], True
                yield None
            else:
                held.append(piece)
    if size and not too_long:
        yield b"".join(held).removeprefix(BYTE_ORDER_MARK)


def _with_line_feeds(chunks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Yield the same bytes with \n for \r\n and for \r, also where a chunk ends between the two."""
    waiting = b""
    for chunk in chunks:
        whole = waiting + chunk
        waiting = b"\r" if whole.endswith(b"\r") else b""
        yield whole.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if waiting:
        yield b"\n"
