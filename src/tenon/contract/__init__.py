"""A contract is what a stream of rows may be, as data: its columns, its key, its row rules, and what a breach means.

`column` holds the words (Column, Source), `sql` the language of derived columns and rules, `contract` the Contract
value, `check` the one pass that parts good rows from bad, `infer` a first draft of a contract from a frame, `odcs`
and `frictionless` its open file formats, `derive` the derived columns and `request` the plain rows of a service.
Names are resolved on first use: declaring a Source imports no Polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tenon.contract.column import Column, Source

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
    "Checked": "request",
    "Contract": "agreement",
    "Count": "verdict",
    "Derivation": "derived",
    "FileVerdict": "file",
    "Reader": "rules",
    "Rule": "agreement",
    "Verdict": "verdict",
    "check": "verdict",
    "check_file": "file",
    "check_rows": "request",
    "derivation": "derived",
    "derive": "derived",
    "derive_rows": "derived",
    "infer": "draft",
    "normal": "frame",
    "require": "verdict",
    "row_checker": "request",
    "types_of": "frame",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tenon.contract' has no attribute '{name}'")
    return getattr(importlib.import_module(f"tenon.contract.{_HOMES[name]}"), name)
