"""A file as blocks of plain bytes, whatever it is compressed with; memory stays flat."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

BLOCK = 256 * 1024
"""Bytes a read. At 64 kB the system calls show, at 1 MB many open lanes hold too much; between them no difference."""

SUFFIXES: dict[str, str] = {".gz": "gzip", ".zst": "zstd"}


class Broken(Exception):
    """The compressed stream is cut short or damaged; what came before it has been handed out."""


def blocks(file: BinaryIO, compression: str | None, start: int = 0) -> Iterator[bytes]:
    """Plain bytes from offset `start` of the plain content to its end, in blocks of bounded size.

    Where the file is compressed, reaching `start` means reading all before it. Raises `Broken` and `OSError`.
    """
    file.seek(start if compression is None else 0)
    if compression is None:
        return _plain(file)
    return _skip(DECODERS[compression](file), start)


def _plain(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _skip(stream: Iterator[bytes], count: int) -> Iterator[bytes]:
    for block in stream:
        if count >= len(block):
            count -= len(block)
        elif count:
            yield block[count:]
            count = 0
        else:
            yield block


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    """Several members in a row (as `cat a.gz b.gz` makes) are one stream; zeros after the last one are padding."""
    pending = file.read(BLOCK)
    while pending:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            if not pending and not (pending := file.read(BLOCK)):
                raise Broken("the gzip stream is cut short")
            try:
                plain = member.decompress(pending, BLOCK)
            except zlib.error as error:
                raise Broken(f"the gzip stream is damaged: {error}") from error
            pending = member.unconsumed_tail
            if plain:
                yield plain
        pending = (member.unused_data or file.read(BLOCK)).lstrip(b"\0")
        while not pending and (pending := file.read(BLOCK)):
            pending = pending.lstrip(b"\0")


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    """Several frames in a row are one stream. A window over 128 MB is refused, so memory stays bounded."""
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame = decoder.decompressobj()
    fresh = True
    out: list[bytes] = []
    size = 0
    try:
        for piece in _pieces(file):
            rest = piece
            while rest:
                plain = frame.decompress(rest)
                fresh = False
                rest = b""
                if frame.eof:
                    rest, frame, fresh = frame.unused_data, decoder.decompressobj(), True
                out.append(plain)
                size += len(plain)
                if size >= BLOCK:
                    yield b"".join(out)
                    out, size = [], 0
    except zstandard.ZstdError as error:
        if size:
            yield b"".join(out)
        raise Broken(f"the zstd stream is damaged: {error}") from error
    if size:
        yield b"".join(out)
    if not fresh:
        raise Broken("the zstd stream is cut short")


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """1 kB at a time: a zstd block of 4 bytes may hold 128 kB, so a hostile kilobyte makes 32 MB and not gigabytes."""
    while block := file.read(BLOCK):
        for at in range(0, len(block), 1024):
            yield block[at : at + 1024]


DECODERS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {"gzip": _gzip, "zstd": _zstd}
