"""A contract is what a stream of rows may be, as data: its columns, its key, its row rules, and what a breach means.

`column` holds the words (Column, Source), `sql` the language of derived columns and rules, `contract` the Contract
value, `check` the one pass that parts good rows from bad, `infer` a first draft of a contract from a frame, `odcs`
and `frictionless` its open file formats, `derive` the derived columns and `request` the plain rows of a service.
Names are resolved on first use: declaring a Source imports no Polars.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.contract.column import Column, Source
from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.contract.agreement import Contract, Rule
    from tenon.contract.derived import Derivation, derivation, derive, derive_rows
    from tenon.contract.draft import infer
    from tenon.contract.file import FileVerdict, check_file
    from tenon.contract.frame import normal, types_of
    from tenon.contract.request import Checked, check_rows, row_checker
    from tenon.contract.rules import Reader
    from tenon.contract.verdict import Count, Verdict, check, require

_HOMES = {
    "agreement": ("Contract", "Rule"),
    "derived": ("Derivation", "derivation", "derive", "derive_rows"),
    "draft": ("infer",),
    "file": ("FileVerdict", "check_file"),
    "frame": ("normal", "types_of"),
    "request": ("Checked", "check_rows", "row_checker"),
    "rules": ("Reader",),
    "verdict": ("Count", "Verdict", "check", "require"),
}
__all__ = [
    "Checked",
    "Column",
    "Contract",
    "Count",
    "Derivation",
    "FileVerdict",
    "Reader",
    "Rule",
    "Source",
    "Verdict",
    "check",
    "check_file",
    "check_rows",
    "derivation",
    "derive",
    "derive_rows",
    "infer",
    "normal",
    "require",
    "row_checker",
    "types_of",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
