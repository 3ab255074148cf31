"""Where bytes come from: files, folders, globs and standard input; decompressed, and read again at any place.

Work is cut into ranges of the decoded input, so a worker must be able to read from the middle. A plain file is read
where it lies. What is compressed or written in UTF-16/32 has no middle: it is decoded once, in order, into a spool of
segments of fixed size, which are read like a file and deleted when their ranges are done, so the disk holds a few
segments and not the whole. The spool knows nothing of rows.

An input that ends inside its compression gives what could be decoded and says so. A zip with several files is several
inputs. What is known to be no text at all (a picture, a workbook) is refused by name, before anything is written.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tenon.errors import InputError, MissingError, missing_extra, sentence
from tenon.ingest.charset import detect
from tenon.limits import IngestLimits

STDIN = Path("-")
MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"PAR1", "parquet"),
)
NO_TEXT = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF-", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90\x00", "a program"),
    (b"SQLite format 3\x00", "a SQLite database"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"ARROW1\x00\x00", "an Arrow file"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
)
TEXTUAL = frozenset((0, 1, 2, *range(7, 14), *range(27, 32)))  # control characters that text files hold
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One thing to read: a file, or a member of a zip; its codec, and what tells whether it changed meanwhile."""

    path: Path
    label: str
    codec: str = ""
    member: str = ""
    size: int = 0
    changed_ns: int = 0

    @property
    def key(self) -> list[Any]:
        """Return what identifies these bytes, as plain data."""
        return [self.label, self.size, self.changed_ns]


def files_of(paths: tuple[Path, ...]) -> list[Path]:
    """Resolve files, folders (all the way down) and globs to files, each once, in order; none is an error."""
    found = list(dict.fromkeys(file for path in paths for file in _files(Path(path))))
    if not found:
        told = ", ".join(str(path) for path in paths) or "no path"
        raise MissingError(sentence("files to read", "none", at=told, hint="check the path, the folder or the pattern"))
    return found


def _files(path: Path) -> Iterator[Path]:
    if path == STDIN or path.is_file() or path.is_fifo():
        yield path
    elif path.is_dir():
        yield from sorted(_within(path))
    elif any(mark in str(path) for mark in "*?["):
        anchor = Path(path.anchor)
        yield from sorted(file for file in anchor.glob(str(path.relative_to(anchor))) if file.is_file())
    else:
        raise MissingError(sentence("a file, folder or pattern", "nothing there", at=str(path), hint="check the path"))


def _within(folder: Path) -> Iterator[Path]:
    """Find the files under a folder; one that cannot be looked into is an error, for its rows would be missing."""

    def refused(error: OSError) -> None:
        got, hint = error.strerror or str(error), "check its permissions"
        raise InputError(sentence("a folder that can be read", got, at=spelt(Path(error.filename)), hint=hint))

    for root, _, names in os.walk(folder, onerror=refused):
        yield from (file for name in names if not name.startswith(".") and (file := Path(root, name)).is_file())


def inputs_of(files: list[Path]) -> list[Input]:
    """Look at the head of every file: its codec, the members of a zip; what is no text is an error that names it."""
    return [found for file in files for found in _inputs(file)]


def _inputs(file: Path) -> Iterator[Input]:
    if file == STDIN:
        yield Input(path=file, label="standard input", codec="stdin")
        return
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
        about = file.stat()
    except OSError as error:
        raise InputError(
            sentence(
                "a file that can be read", error.strerror or str(error), at=str(file), hint="check its permissions"
            )
        ) from error
    codec = next((name for magic, name in MAGIC if head.startswith(magic)), "")
    if not codec:
        refuse(head, str(file))
    facts: dict[str, Any] = {"path": file, "size": about.st_size, "changed_ns": about.st_mtime_ns}
    if codec != "zip":
        yield Input(label=spelt(file), codec=codec, **facts)
        return
    try:
        with zipfile.ZipFile(file) as pack:
            members = [
                member
                for member in pack.infolist()
                if not member.is_dir() and not member.filename.startswith("__MACOSX/") and member.file_size
            ]
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(sentence("a zip file", str(error), at=str(file), hint="fetch the file again")) from error
    names = {member.filename for member in members}
    if "[Content_Types].xml" in names:
        raise InputError(sentence("rows of text", "an Office workbook", at=str(file), hint="save its sheets as CSV"))
    if any(member.flag_bits & 1 for member in members):
        raise InputError(sentence("a zip without a password", "an encrypted one", at=str(file), hint="unpack it first"))
    if not members:
        yield Input(label=spelt(file), codec="none", **facts)
    for member in members:
        label = spelt(file) if len(members) == 1 else f"{spelt(file)}!{member.filename}"
        yield Input(label=label, codec="zip", member=member.filename, **facts)


def spelt(path: Path) -> str:
    """Spell a path in characters that can be written anywhere: bytes of a name that are no UTF-8 become `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def refuse(head: bytes, label: str) -> None:
    """Raise when the first bytes are those of a kind of file that holds no rows of text, or of no text at all."""
    for magic, name in NO_TEXT:
        if head.startswith(magic):
            raise InputError(sentence("rows of text", name, at=label, hint="give CSV, JSON Lines or Parquet"))
    # Text has few control characters, and some of them delimit; in UTF-16 they are halves of letters.
    if detect(head).wide:
        return
    strange = sum(byte < 32 and byte not in TEXTUAL for byte in head)
    if len(head) >= 64 and strange > len(head) // 50:
        raise InputError(sentence("rows of text", "binary data", at=label, hint="give CSV, JSON Lines or Parquet"))


# ── decoding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def blocks(source: Input, limits: IngestLimits) -> Iterator[bytes]:
    """Yield the decompressed bytes in blocks; raises EOFError after the last good one when the compression is cut."""
    out = 0
    bound = max(source.size, BLOCK) * limits.decompressed_ratio
    try:
        for block in _blocks(source):
            out += len(block)
            if source.size and out > bound:
                wanted = f"at most {limits.decompressed_ratio:,} times its size when decompressed"
                hint = "if the file is honest, raise limits.ingest.decompressed_ratio"
                raise InputError(sentence(wanted, "more", at=source.label, hint=hint))
            yield block
    except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError) as error:
        raise EOFError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # bz2 says so of broken data
            raise EOFError(str(error)) from error
        raise InputError(sentence("readable bytes", error.strerror or str(error), at=source.label)) from error


def _blocks(source: Input) -> Iterator[bytes]:
    if source.codec == "zip":
        with zipfile.ZipFile(source.path) as pack, pack.open(source.member) as member:
            while block := member.read(BLOCK):
                yield block
        return
    if source.codec == "none":
        return
    stdin = source.codec == "stdin"
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb") if stdin else source.path.open("rb") as stream:
        if source.codec in UNPACKERS:
            yield from _unpacked(stream, UNPACKERS[source.codec])
            return
        while block := stream.read(BLOCK):
            yield block


def _unpacked(stream: IO[bytes], start: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress one member after the other, giving out all that can be decoded of one that is cut."""
    unpacker, rest, members = start(), b"", 0
    while True:
        data = rest or stream.read(BLOCK // 4)
        rest = b""
        if not data:
            if members == 0 or unpacker is not None:
                raise EOFError("the compressed data ends early")
            return
        if unpacker is None:
            if not data.strip(b"\x00"):  # padding
                continue
            unpacker = start()
        while True:
            block = unpacker.decompress(data, BLOCK)
            if block:
                yield block
            data = getattr(unpacker, "unconsumed_tail", b"")
            if unpacker.eof:
                rest, unpacker, members = unpacker.unused_data, None, members + 1
                break
            if not data and (len(block) < BLOCK or getattr(unpacker, "needs_input", not block)):
                break


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        try:
            from backports import zstd
        except ImportError as error:
            raise missing_extra("backports.zstd", "zstd", "read zstd files") from error
    return _Zstd(zstd.ZstdDecompressor(), zstd.ZstdError)


class _Zstd:
    """A zstd decompressor whose error is a ValueError, whichever package it comes from."""

    __slots__ = ("_error", "_inner")

    def __init__(self, inner: Any, error: type[Exception]) -> None:
        self._inner, self._error = inner, error

    def decompress(self, data: bytes, size: int) -> bytes:
        try:
            return bytes(self._inner.decompress(data, size))
        except self._error as error:
            raise ValueError(str(error)) from error

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    @property
    def needs_input(self) -> bool:
        return bool(self._inner.needs_input)


UNPACKERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "zstd": _zstd,
}


def transcoded(source: Iterator[bytes], encoding: str, mark: int) -> Iterator[bytes]:
    """Turn UTF-16/32 into UTF-8 block by block; what is no character becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    skip = mark
    for block in source:
        block, skip = block[skip:], max(0, skip - len(block))
        text = decoder.decode(block)
        if text:
            yield text.encode("utf-8", "replace")
    rest = decoder.decode(b"", True)
    if rest:
        yield rest.encode("utf-8", "replace")


# ── reading at any place ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The decoded input as one run of bytes: segments of `step` bytes in `folder`, or (step 0) the plain file itself.

    `size` is its length, or how far it has been decoded so far.
    """

    path: Path
    size: int
    step: int = 0

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes from `begin` up to `end` (or the end of the input)."""
        end = min(end, self.size)
        if begin >= end:
            return b""
        if not self.step:
            return _slice(self.path, begin, end)
        out = []
        while begin < end:
            number = begin // self.step
            stop = min(end, (number + 1) * self.step)
            out.append(_slice(segment(self.path, number), begin - number * self.step, stop - number * self.step))
            begin = stop
        return b"".join(out)

    def to_dict(self) -> dict[str, Any]:
        """Return the view as plain data, as it travels to a worker."""
        return {"path": str(self.path), "size": self.size, "step": self.step}

    @staticmethod
    def from_dict(body: dict[str, Any]) -> View:
        """Rebuild the view from plain data."""
        return View(path=Path(body["path"]), size=int(body["size"]), step=int(body["step"]))


def segment(folder: Path, number: int) -> Path:
    """Name a segment of a spool."""
    return folder / f"{number:08d}"


def _slice(path: Path, begin: int, end: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as stream:
            stream.seek(begin)
            out = []
            while begin < end:
                block = stream.read(end - begin)
                if not block:
                    break
                out.append(block)
                begin += len(block)
    except OSError as error:
        raise InputError(sentence("readable bytes", error.strerror or str(error), at=str(path))) from error
    if begin < end:
        raise InputError(
            sentence(
                "the file as long as it was at the start",
                "a shorter one",
                at=str(path),
                hint="start again when it rests",
            )
        )
    return out[0] if len(out) == 1 else b"".join(out)
