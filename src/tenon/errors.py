"""One tree of errors, and the words they use.

    TenonError
    ├── UsageError        the command, option or call was wrong                        exit 2
    ├── ConfigError       tenon.toml, the environment or project.py says what it may not exit 2
    ├── InputError        a file, row or request cannot be read as what it should be   exit 1
    ├── ContractError     data broke its contract beyond the threshold                 exit 1
    ├── MissingError      a name (run, version, file, package) does not exist here     exit 1
    ├── StoreError        the store cannot be read or written: disk, lock, permission  exit 1
    │   └── CorruptError  bytes came back different from the digest that names them    exit 1
    ├── TrainingError     a run failed or a guard stopped it                           exit 1
    ├── GateError         a version may not be promoted                                exit 1
    └── BudgetError       it would cost, or has cost, more than allowed                exit 1

A leaf exists only where a caller acts differently. Every message is built by `sentence`, so that it always says what
was expected, what came instead, where, and what to do next: ``expected X, got Y - at PLACE; NEXT STEP``.

Foreign errors are wrapped where they enter, with the original as the cause:

    sqlite3.OperationalError, psycopg.Error, OSError (ENOSPC, EACCES, EIO)   -> StoreError in `store`
    polars.exceptions.PolarsError, UnicodeDecodeError, zlib.error            -> InputError in `ingest`
    sqlglot.errors.ParseError                                                -> ConfigError in `feature` and `contract`
    tomllib.TOMLDecodeError                                                  -> ConfigError in `config`
    ImportError of an optional package                                       -> MissingError through `missing_extra`
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Control characters, and those of Unicode that turn, hide or break text; joiners stay, words are written with them.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


class TenonError(Exception):
    """Anything tenon refuses to do, in one sentence a person can act on; `exit_code` is what the command returns."""

    exit_code = 1


class UsageError(TenonError):
    """The command, option or call was wrong."""

    exit_code = 2


class ConfigError(TenonError):
    """tenon.toml, the environment or project.py says something it may not."""

    exit_code = 2


class InputError(TenonError):
    """A file, row or request cannot be read as what it should be."""


class ContractError(TenonError):
    """Data broke its contract beyond the threshold its owner set."""


class MissingError(TenonError):
    """A run, version, file or package of that name does not exist here."""


class StoreError(TenonError):
    """The store cannot be read or written: disk, lock or permission."""


class CorruptError(StoreError):
    """Bytes came back different from the digest that names them."""


class TrainingError(TenonError):
    """A run failed, or a guard stopped it."""


class GateError(TenonError):
    """A version may not be promoted."""


class BudgetError(TenonError):
    """It would cost, or has cost, more than its owner allowed."""


# ── wording ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def sentence(expected: str, got: str, *, at: str = "", hint: str = "") -> str:
    """Say ``expected X, got Y - at PLACE; NEXT STEP``, leaving out what was not given."""
    text = f"expected {expected}, got {got}"
    if at:
        text += f" - at {at}"
    if hint:
        text += f"; {hint}"
    return text


def quoted(names: Iterable[str]) -> str:
    """Write names sorted and quoted, as errors list what is allowed: ``'a', 'b', 'c'`` (at most 20, then a count)."""
    every = sorted(set(names))
    shown = ", ".join(f"'{name}'" for name in every[:20])
    return f"{shown} and {len(every) - 20} more" if len(every) > 20 else shown


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Suggest the nearest allowed name: ``did you mean 'x'?``, or list what is allowed when nothing is near."""
    every = sorted(set(allowed))
    close = difflib.get_close_matches(name, every, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"one of {quoted(every)}" if every else "nothing is allowed here"


def missing_extra(package: str, extra: str, purpose: str) -> MissingError:
    """Build the error for an optional package that is not installed, with the command that installs it."""
    return MissingError(
        sentence(
            f"the package '{package}' to {purpose}", "an environment without it", hint=f"pip install 'tenon[{extra}]'"
        )
    )


def harmless(text: str) -> str:
    """Show control and direction-changing characters as their code points, so that data cannot drive the terminal."""
    return CONTROL.sub(_point, text)


def _point(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"
