"""Blobs: bytes named by their SHA-256, in a folder by default (`Folder`), in an object store for a team (`Bucket`).

A blob is written to a temporary file, hashed on the way, flushed to the disk and renamed to `ab/abcdef...`, so that a
name either does not exist or holds all its bytes. Putting the same bytes again writes nothing and makes the blob young
again, which keeps it from a garbage collection that runs meanwhile; if the disk has damaged them since, they are
written anew. Reading checks the bytes against the name.

Both classes have the same methods and no common base. What they share are the functions at the end.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tenon.errors import CorruptError, InputError, MissingError, StoreError, UsageError, sentence
from tenon.limits import MIB, StoreLimits

DIGEST = re.compile(r"[0-9a-f]{64}")
CHUNK = 1 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A blob as found in its place: how large, and when it was last put (Unix seconds)."""

    digest: str
    size: int
    at: float


class Folder:
    """Blobs as files under one folder."""

    __slots__ = ("_limits", "root")

    def __init__(self, root: Path, limits: StoreLimits) -> None:
        self.root = root
        self._limits = limits

    def put(self, data: bytes | Path) -> str:
        """Keep bytes, or the content of a file (which is copied), and return their digest. Survives a power cut."""
        if isinstance(data, bytes):  # most of what is put again is pieces of datasets: then nothing is written at all
            digest = hashlib.sha256(data).hexdigest()
            with self._lock(exclusive=False), words_of_disk(self.root):
                if _made_young(self._file(digest), digest, len(data)):
                    return digest
        digest, temporary = stage(data, self.root, self._limits)
        target = self._file(digest)
        with leaving_nothing(temporary), self._lock(exclusive=False), words_of_disk(self.root):
            if not _made_young(target, digest, temporary.stat().st_size):
                make_folder(target.parent)
                temporary.replace(target)
                flush_folder(target.parent)
        return digest

    def path(self, digest: str) -> Path:
        """Return the file that holds a blob, to be read only; its bytes are not checked (`read` and `check` do)."""
        file = self._file(digest)
        if not file.is_file():
            raise missing(digest, str(self.root))
        return file

    def read(self, digest: str) -> bytes:
        """Return a blob's bytes, checked against its name."""
        return verified(self.path(digest), digest)

    def check(self, digest: str) -> None:
        """Read all bytes of a blob, in pieces, and raise CorruptError when they are not those its name says."""
        file = self.path(digest)
        if (found := hash_of(file)) != digest:
            raise corrupt(digest, found, str(file))

    def has(self, digest: str) -> bool:
        """Tell whether the blob is here."""
        return bool(DIGEST.fullmatch(digest)) and self._file(digest).is_file()

    def absent(self, digests: Iterable[str]) -> set[str]:
        """Return those of the blobs that are not here."""
        return {digest for digest in digests if not self.has(digest)}

    def size(self, digest: str) -> int:
        """Return the size of a blob in bytes."""
        return self.path(digest).stat().st_size

    def delete(self, digest: str) -> bool:
        """Remove a blob; return whether it was here. Nobody asks whether something still refers to it: `gc` does."""
        file = self._file(digest)
        with words_of_disk(file):
            try:
                file.unlink()
            except FileNotFoundError:
                return False
        return True

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs, in order."""
        for kept in self.kept():
            yield kept.digest

    def kept(self) -> Iterator[Kept]:
        """Yield every blob with its size and age, in order."""
        if not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            if len(folder.name) != 2 or not folder.is_dir():
                continue
            for file in sorted(folder.iterdir()):
                if DIGEST.fullmatch(file.name):
                    with suppress(FileNotFoundError):  # deleted while we look
                        state = file.stat()
                        yield Kept(digest=file.name, size=state.st_size, at=state.st_mtime)

    def sweep(self, doomed: set[str], *, before: float) -> tuple[int, int]:
        """Delete those blobs that nobody has put again since `before`; return how many and how many bytes."""
        count = size = 0
        for digest in sorted(doomed):
            file = self._file(digest)
            with self._lock(exclusive=True), suppress(FileNotFoundError):
                state = file.stat()
                if state.st_mtime < before:
                    file.unlink()
                    count += 1
                    size += state.st_size
        return count, size

    def leftovers(self, *, before: float) -> list[Path]:
        """Return temporary files that processes left behind when they died."""
        return leftovers(self.root, before=before)

    def _file(self, digest: str) -> Path:
        checked(digest)
        return self.root / digest[:2] / digest

    @contextmanager
    def _lock(self, *, exclusive: bool) -> Iterator[None]:
        """Keep `sweep` from running between the moment `put` finds a blob and the moment it has made it young."""
        with words_of_disk(self.root):
            make_folder(self.root)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)


# ── shared with the object store ─────────────────────────────────────────────────────────────────────────────────────


def stage(data: bytes | Path, folder: Path, limits: StoreLimits) -> tuple[str, Path]:
    """Write the bytes to a temporary file in `folder`, flushed to the disk; return their digest and that file."""
    if isinstance(data, Path) and not data.is_file():
        raise InputError(sentence("a file to keep", "nothing" if not data.exists() else "no plain file", at=str(data)))
    size = data.stat().st_size if isinstance(data, Path) else len(data)
    require_room(folder, size, limits)
    with words_of_disk(folder):
        make_folder(folder)
        temporary = folder / f".put-{os.getpid()}-{secrets.token_hex(8)}"
        # Read-only for everybody whom the umask lets read: a blob is never changed again.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            with os.fdopen(handle, "wb") as file:
                if isinstance(data, Path):
                    digest = _copy(data, file)
                else:
                    digest = hashlib.sha256(data).hexdigest()
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # the edge of writing: whatever ends it, no half file stays behind
            temporary.unlink(missing_ok=True)
            raise
    return digest, temporary


def require_room(folder: Path, size: int, limits: StoreLimits) -> None:
    """Raise StoreError when `size` bytes more would leave less than the limit free on the disk of `folder`."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    with words_of_disk(folder):
        state = os.statvfs(place)
    free = state.f_bavail * state.f_frsize
    if free - size < limits.free_bytes:
        wanted = f"{_mb(size)} and {_mb(limits.free_bytes)} to spare on the disk"
        hint = "free some space, or run `tenon store gc`; nothing was changed"
        raise StoreError(sentence(wanted, f"{_mb(free)} free", at=str(folder), hint=hint))


def verified(path: Path, digest: str) -> bytes:
    """Return the bytes of a file, which must be those its digest names."""
    with words_of_disk(path):
        data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise corrupt(digest, found, str(path))
    return data


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with words_of_disk(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(digest: str) -> str:
    """Return the digest, which must be one: a name from outside must never become a path."""
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise UsageError(sentence("a SHA-256 in 64 hex digits", f"'{str(digest)[:80]}'", at="store.blobs"))
    return digest


def missing(digest: str, place: str) -> MissingError:
    """Build the error for a blob that is not there."""
    hint = "run `tenon store check`; if its files were moved or cleaned by hand, restore them or run the stage again"
    return MissingError(sentence(f"the blob {digest[:12]}", "nothing", at=place, hint=hint))


def corrupt(digest: str, found: str, place: str) -> CorruptError:
    """Build the error for bytes that are not those they are named after."""
    hint = "the disk or a person changed it: delete that file and run again, or restore it from a backup"
    return CorruptError(sentence(f"bytes with the digest {digest[:12]}", f"digest {found[:12]}", at=place, hint=hint))


@contextmanager
def words_of_disk(place: Path) -> Iterator[None]:
    """Turn the operating system's errors of files into StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            got, hint = "a full disk", "free some space, or run `tenon store gc`; nothing was changed"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            got, hint = f"'{error.strerror}'", "check who owns the folder and that the disk is not mounted read-only"
        else:
            got, hint = f"'{error.strerror or error}'", "run `tenon doctor`"
        raise StoreError(sentence("to read and write here", got, at=str(place), hint=hint)) from error


@contextmanager
def leaving_nothing(temporary: Path) -> Iterator[None]:
    """Remove a temporary file however the block ends."""
    try:
        yield
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder so that it is still there after a power cut."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk: a renamed file is lost in a power cut without it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def leftovers(folder: Path, *, before: float) -> list[Path]:
    """Return the temporary files of `stage` in a folder that are older than `before`."""
    found = []
    for file in folder.glob(".put-*"):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < before:
                found.append(file)
    return sorted(found)


def _made_young(file: Path, digest: str, size: int) -> bool:
    """Set a file's age to now when it is there, whole and undamaged; False when it must be written (again)."""
    try:
        if file.stat().st_size != size:
            return False
        os.utime(file)
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False
    except PermissionError:
        return False  # it belongs to a colleague: our copy takes its place, which makes it young as well


def _copy(source: Path, target: io.BufferedWriter) -> str:
    """Copy a file and return the digest of the bytes that were copied, whatever happens to the source meanwhile."""
    running = hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            running.update(chunk)
            target.write(chunk)
    return running.hexdigest()


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"
