"""A process that turns text into tokens, for `workers.py`: batches come in on stdin, tokens go out on stdout.

It imports the tokenizer's library and nothing of ours beyond this file, so that it starts at once and stays small. It
ends when stdin does, hence whenever its parent ends; Ctrl-C is the parent's to answer.

Every message is eight bytes with the length of what follows. The first is the tokenizer (tokenizer.json), the second
the separator; after that a batch is one message with the lengths of its documents (four bytes each) and one with their
UTF-8. The answer is "ok" or what went wrong, and the tokens, each document followed by the separator, as uint32.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from array import array
from typing import IO


def send(file: IO[bytes], data: bytes) -> None:
    """Write one message."""
    file.write(struct.pack("<Q", len(data)))
    file.write(data)
    file.flush()


def receive(file: IO[bytes]) -> bytes | None:
    """Read one message; None where the other side has ended."""
    head = file.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack("<Q", head)
    data = file.read(size)
    return data if len(data) == size else None


def texts_of(lengths: bytes, data: bytes) -> list[str]:
    """Return the documents of a batch."""
    found, place = [], 0
    for length in array("I", lengths):
        found.append(data[place : place + length].decode("utf-8"))
        place += length
    return found


def main() -> None:
    """Answer batches until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    from tokenizers import Tokenizer

    definition, separator = receive(sys.stdin.buffer), receive(sys.stdin.buffer)
    if definition is None or separator is None:
        return
    tokenizer = Tokenizer.from_str(definition.decode("utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    end = int(separator)
    while (lengths := receive(sys.stdin.buffer)) is not None and (data := receive(sys.stdin.buffer)) is not None:
        tokens = array("I")
        try:
            for encoding in tokenizer.encode_batch_fast(texts_of(lengths, data), add_special_tokens=False):
                tokens.extend(encoding.ids)
                tokens.append(end)
        except Exception as error:
            send(out, f"{type(error).__name__}: {error}".encode())
            send(out, b"")
            continue
        send(out, b"ok")
        send(out, tokens.tobytes())


if __name__ == "__main__":
    main()
