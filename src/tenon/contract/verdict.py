"""Checking a frame against a contract: every rule in one pass, good rows and bad rows apart, and what to tell people.

Bad data is a value. `check` returns a Verdict and raises nothing for what is in the rows; `require` is the raising door
on top. A row that breaks a rule of severity "error" is bad, and its `_rules` names every rule it broke; a rule of
severity "warning" or "info" is counted and told, and moves no row. The check as a whole fails when some rule of
severity "error" is broken by more rows than its threshold allows, in percent.

The tests run as two Polars selects (`rules.plan`): the first asks of whole columns which tests any row can break at
all, the second looks at rows for those tests alone, and in what was clean so far there are few. A pattern over a column
of few values is asked of the values. What is told about rows at fault (examples, names of rules) is worked out on those
rows alone. `part` judges one batch and `conclude` adds batches up: a frame is a file of one batch. Splitting good rows
from bad is dataframely's idea of `filter`; the percentages and the third answer are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import polars as pl

from tenon.contract import repeats
from tenon.contract.agreement import Contract
from tenon.contract.column import Severity
from tenon.contract.frame import normal
from tenon.contract.rules import FEW, RAW, Plan, Test, again, plan
from tenon.errors import ContractError, sentence
from tenon.finding import Finding

EXAMPLES = 5
MANY_ROWS = 10_000  # from here on it pays to look at values before rows
SAMPLE = 1_000
_RULE = "contract/rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How one rule fared: rows at fault, rows it could not be decided for, and what was allowed."""

    rule: str
    code: str
    expected: str
    severity: Severity
    threshold_pct: float
    rows: int
    broken: int
    unknown: int
    examples: tuple[str, ...]

    @property
    def broken_pct(self) -> float:
        """Return the share of rows at fault, in percent."""
        return 100 * self.broken / self.rows if self.rows else 0.0

    @property
    def exceeded(self) -> bool:
        """Say whether more rows are at fault than the rule's threshold allows."""
        return self.broken > 0 and self.broken_pct > self.threshold_pct

    @property
    def said(self) -> str:
        """Tell it in one sentence, counts first."""
        share = f"{self.broken:,} of {self.rows:,} rows ({_percent(self.broken_pct)})"
        text = f"{share} break {self.rule}: expected {self.expected}"
        return text + (f", got {', '.join(self.examples)}" if self.examples else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Good rows in their declared types, bad rows as they came with `_rules`, findings, and the count of every rule."""

    contract: Contract
    good: pl.DataFrame
    bad: pl.DataFrame
    findings: tuple[Finding, ...]
    counts: Mapping[str, Count]

    @property
    def passed(self) -> bool:
        """Say whether the contract holds: no finding is an error."""
        return passed(self.findings)

    def to_junit(self) -> str:
        """Write the verdict as JUnit XML for a CI: one case for each rule, failed where its threshold is exceeded."""
        return junit(self.contract.name, self.counts.values(), self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and findings as plain data, without the rows."""
        return summary(self.contract, self.good.height, self.bad.height, self.findings, self.counts)


def check(frame: pl.DataFrame, contract: Contract, *, now: float | None = None) -> Verdict:
    """Split a frame into rows that keep the contract and rows that do not, naming the rules each broke.

    One pass; the frame is not changed. `now` (Unix seconds) also judges how fresh the newest row is.
    """
    frame = normal(frame)
    prepared = plan(contract, frame.schema)
    typed = prepared.typed(frame)
    judged = part(frame, typed, prepared, {names: repeats.in_frame(typed, names) for names in prepared.unique})
    findings, counts = conclude(prepared, [judged.tally], now)
    return Verdict(contract=contract, good=judged.good, bad=judged.bad, findings=findings, counts=counts)


def require(frame: pl.DataFrame, contract: Contract, *, now: float | None = None) -> pl.DataFrame:
    """Return the good rows, or raise ContractError when the contract does not hold within its thresholds."""
    verdict = check(frame, contract, now=now)
    if not verdict.passed:
        wrong = [finding for finding in verdict.findings if finding.severity == "error"]
        raise ContractError(
            sentence(
                f"rows that keep the contract '{contract.name}'",
                wrong[0].said.rstrip("."),
                at=wrong[0].place,
                hint=(f"{len(wrong) - 1} more rules are broken; " if len(wrong) > 1 else "") + wrong[0].hint,
            )
        )
    return verdict.good


# ── one batch ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The counts of one batch: by rule, rows at fault and rows undecided, with a few values; and the newest time."""

    rows: int
    broken: tuple[int, ...]
    unknown: tuple[int, ...]
    examples: tuple[tuple[str, ...], ...]
    newest_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One batch judged."""

    good: pl.DataFrame
    bad: pl.DataFrame
    tally: Tally


def part(
    frame: pl.DataFrame, typed: pl.DataFrame, prepared: Plan, repeated: Mapping[tuple[str, ...], pl.Series | None]
) -> Part:
    """Judge one batch: the rows as they came, as `prepared.typed` made them, and where keys repeat (None: nowhere)."""
    tests, flags = prepared.tests, _flags(typed, prepared.tests, repeated)
    broken = tuple(int(flags[n].sum()) if n in flags else 0 for n in range(len(tests)))
    faults = [n for n in flags if broken[n]]
    grave = [str(n) for n in faults if tests[n].severity == "error"]
    every = pl.DataFrame({str(n): flags[n] for n in faults}).with_columns(pl.all().fill_null(value=False))
    kept = typed.select(prepared.keep)
    if grave:
        at_fault = every.select(pl.any_horizontal(grave)).to_series()
        good, bad = kept.filter(~at_fault), frame.filter(at_fault)
        named = _names(every.filter(at_fault), [tests[n].rule for n in faults])
    else:
        good, bad, named = kept, frame.clear(), pl.Series(dtype=pl.List(pl.String))
    tally = Tally(
        rows=frame.height,
        broken=broken,
        unknown=tuple(
            flags[n].null_count() if n in flags and test.code == _RULE else 0 for n, test in enumerate(tests)
        ),
        examples=tuple(_examples(typed, every[str(n)], test) if broken[n] else () for n, test in enumerate(tests)),
        newest_s=_newest(typed, prepared.contract),
    )
    return Part(good=good, bad=bad.with_columns(named.alias("_rules")), tally=tally)


def _flags(
    typed: pl.DataFrame, tests: Sequence[Test], repeated: Mapping[tuple[str, ...], pl.Series | None]
) -> dict[int, pl.Series]:
    """Return where each test is broken, by its number; a test that no row breaks may be left out."""
    if repeated:
        typed = typed.with_columns(
            (pl.lit(False) if where is None else where).alias(again(names)) for names, where in repeated.items()
        )
    asked = {str(number): test.suspect for number, test in enumerate(tests) if test.suspect is not None}
    suspects = typed.select(**asked).row(0, named=True) if asked else {}
    look: dict[str, pl.Expr] = {}
    distinct: dict[str, pl.Series | None] = {}
    for number, test in enumerate(tests):
        if suspects.get(str(number), True) is not True:
            continue
        look[str(number)] = test.broken
        if test.by_value:
            name = test.columns[0]
            values = distinct[name] if name in distinct else distinct.setdefault(name, _distinct(typed[name]))
            wrong = None if values is None else values.to_frame().filter(test.broken)[name].to_list()
            if wrong is not None and len(wrong) <= FEW:
                look[str(number)] = pl.any_horizontal(pl.lit(False), *(pl.col(name) == each for each in wrong))
                if not wrong:
                    del look[str(number)]
    if not look:
        return {}
    # A test that is constant has the frame's height beside "_".
    flags = typed.select(pl.repeat(False, pl.len()).alias("_"), **look)
    return {int(name): flags[name] for name in look}


def _distinct(values: pl.Series) -> pl.Series | None:
    """Return the different values of a column, or None when they are many; a sample says whether to look."""
    if len(values) < MANY_ROWS or values.gather_every(len(values) // SAMPLE).n_unique() > SAMPLE // 8:
        return None
    return values.unique()


def _names(flags: pl.DataFrame, rules: Sequence[str]) -> pl.Series:
    """Return for each row the rules whose column is true; rows break few different sets of rules."""
    sets = flags.unique()
    named = [[rule for rule, yes in zip(rules, each, strict=True) if yes] for each in sets.rows()]
    told = sets.with_columns(pl.Series("_rules", named, dtype=pl.List(pl.String)))
    return flags.join(told, on=flags.columns, how="left", maintain_order="left")["_rules"]


def _examples(typed: pl.DataFrame, flags: pl.Series, test: Test) -> tuple[str, ...]:
    """Return a few different values at fault, written so that nothing in them can act on a terminal."""
    if not test.columns or test.code in ("contract/null", "contract/missing-column"):
        return ()
    rows = np.flatnonzero(flags.to_numpy())[:200]
    names = [RAW + name if RAW + name in typed.columns else name for name in test.columns]
    values = [[_shown(value) for value in typed[name].gather(rows).to_list()] for name in names]
    some = list(dict.fromkeys(zip(*values, strict=True)))[:EXAMPLES]
    if len(names) == 1:
        return tuple(value for (value,) in some)
    return tuple(" ".join(f"{name}={value}" for name, value in zip(test.columns, each, strict=True)) for each in some)


def _shown(value: Any) -> str:
    said = repr(value) if isinstance(value, str) else str(value)
    return said if len(said) <= 60 else said[:57] + "..."


def _newest(typed: pl.DataFrame, contract: Contract) -> float | None:
    name = contract.known or contract.time
    if not contract.freshness or name not in typed.columns or typed.schema[name] not in (pl.Datetime("us"), pl.Date()):
        return None
    newest = typed[name].cast(pl.Datetime("us")).cast(pl.Int64).max()
    return int(newest) / 1e6 if isinstance(newest, int) else None


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def conclude(
    prepared: Plan, tallies: Sequence[Tally], now: float | None
) -> tuple[tuple[Finding, ...], dict[str, Count]]:
    """Add up batches and say what was found, gravest first."""
    rows = sum(tally.rows for tally in tallies)
    counts = {}
    findings = list(prepared.findings)
    for number, test in enumerate(prepared.tests):
        examples = dict.fromkeys(each for tally in tallies for each in tally.examples[number])
        count = Count(
            rule=test.rule,
            code=test.code,
            expected=test.expected,
            severity=test.severity,
            threshold_pct=test.threshold_pct,
            rows=rows,
            broken=sum(tally.broken[number] for tally in tallies),
            unknown=sum(tally.unknown[number] for tally in tallies),
            examples=tuple(examples)[:EXAMPLES],
        )
        counts[test.rule] = count
        if count.broken:
            findings.append(_finding(prepared.contract, count))
    stale = _stale(prepared.contract, [tally.newest_s for tally in tallies], now)
    order = {"error": 0, "warning": 1, "info": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return (*([stale] if stale else []), *findings), counts


def _finding(contract: Contract, count: Count) -> Finding:
    within = "" if count.exceeded else f" That is within its threshold of {_percent(count.threshold_pct)}."
    return Finding(
        code=count.code,
        severity=count.severity if count.exceeded else "info",
        place=f"{contract.name}/{count.rule}",
        said=f"{count.said}.{within}",
        hint=_HINTS[count.code],
        numbers={
            "rows": count.rows,
            "broken": count.broken,
            "broken_pct": count.broken_pct,
            "threshold_pct": count.threshold_pct,
            "unknown": count.unknown,
        },
    )


_HINTS = {
    "contract/missing-column": "Mend the file or take the column out of the contract.",
    "contract/type": "Mend the values, declare the type they have, or add a word that means missing to null.",
    "contract/null": "Say nullable=True if a value may be missing, or find out why it is.",
    "contract/finite": "Write a missing number as missing, not as NaN or infinity.",
    "contract/between": "Widen between= if these values are right, or mend them at their source.",
    "contract/one-of": "Add the value to one_of= if it is right, or mend it at its source.",
    "contract/pattern": "Widen the pattern if these values are right, or mend them at their source.",
    "contract/unique": "Keep one row for each value, or take unique= away.",
    "contract/key": "Keep one row for each key, or add the column that tells these rows apart to the key.",
    "contract/rule": "Look at the rows in the bad part; mend them at their source or mend the rule.",
}


def _stale(contract: Contract, newest: Sequence[float | None], now: float | None) -> Finding | None:
    """Judge how old the newest row is, when asked and when there is a row with a time."""
    known = [each for each in newest if each is not None]
    if now is None or not contract.freshness or not known:
        return None
    age_s = now - max(known)
    if age_s <= contract.freshness_s:
        return None
    return Finding(
        code="contract/freshness",
        severity="error",
        place=f"{contract.name}/{contract.known or contract.time}",
        said=f"The newest row is {age_s / 3600:,.1f} hours old; the contract allows {contract.freshness}.",
        hint="Find out why no newer rows came.",
        numbers={"age_s": age_s, "allowed_s": contract.freshness_s},
    )


def passed(findings: Sequence[Finding]) -> bool:
    """Say whether no finding is an error."""
    return all(finding.severity != "error" for finding in findings)


def summary(
    contract: Contract, good: int, bad: int, findings: Sequence[Finding], counts: Mapping[str, Count]
) -> dict[str, Any]:
    """Return a verdict as plain data."""
    return {
        "contract": contract.name,
        "digest": contract.digest,
        "passed": passed(findings),
        "rows": good + bad,
        "good": good,
        "bad": bad,
        "findings": [finding.to_dict() for finding in findings],
        "rules": [
            {
                "rule": count.rule,
                "broken": count.broken,
                "unknown": count.unknown,
                "broken_pct": count.broken_pct,
                "threshold_pct": count.threshold_pct,
                "severity": count.severity,
            }
            for count in counts.values()
        ],
    }


def _percent(value: float) -> str:
    return f"{value:.4g} %"


# ── JUnit ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def junit(name: str, counts: Sequence[Count] | Any, findings: Sequence[Finding]) -> str:
    """Write rules as JUnit XML: a failure is a finding that is an error, a warning goes to the case's output."""
    told = {finding.place.removeprefix(f"{name}/"): finding for finding in findings}
    cases = []
    rules = [count.rule for count in counts]
    for rule in [*rules, *(place for place in told if place not in rules)]:
        finding = told.get(rule)
        head = f"  <testcase classname={_attribute(name)} name={_attribute(rule)}"
        if finding is None:
            cases.append(f"{head}/>")
            continue
        tag = "failure" if finding.severity == "error" else "system-out"
        said = f" message={_attribute(finding.said)} type={_attribute(finding.code)}" if tag == "failure" else ""
        body = _escaped(f"{finding.said} {finding.hint}")
        cases.append(f"{head}>\n    <{tag}{said}>{body}</{tag}>\n  </testcase>")
    failures = sum(finding.severity == "error" for finding in told.values())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<testsuite name={_attribute(f"contract {name}")} tests="{len(cases)}" failures="{failures}" errors="0">\n'
        + "\n".join(cases)
        + "\n</testsuite>\n"
    )


def _printable(text: str) -> str:
    """Leave out what XML 1.0 has no way to write, control characters above all."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def _attribute(text: str) -> str:
    return quoteattr(_printable(text))


def _escaped(text: str) -> str:
    return _printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
