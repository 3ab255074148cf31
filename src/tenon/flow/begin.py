"""Begin a project: a folder with a project.py, from somebody's own file or with a small example that runs at once.

From a file, the columns are read by ingest and inferred by contract, and written as Python a person can edit. The
example is a year of invoices made from a fixed seed: whether an invoice is paid late depends on its customer's habits
and its amount, so that a feature over what was already known has something to find.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from tenon.contract.column import Column
from tenon.errors import InputError, UsageError, nearest, sentence

EXAMPLE = '''"""Will this invoice be paid more than 14 days late? Asked on the day it is sent.

An invoice's outcome is known only when it is paid, so `days_late` is marked late: no feature of the invoice itself may
use it, and the customer's history counts only invoices that had been paid by then.
"""

from tenon import Column, Feature, Gate, Label, Model, Project, Source, Words

invoices = Source(
    "invoices",
    "raw/invoices.csv",
    key=["invoice"],
    time="sent",
    known="paid",
    columns=[
        Column("invoice", "int", unique=True),
        Column("customer", "text"),
        Column("amount", "float", unit="EUR", between=(0, 100_000)),
        Column("sent", "timestamp"),
        Column("paid", "timestamp", nullable=True, late=True),
        Column("days_late", "float", unit="d", nullable=True, late=True),
    ],
    rules=["paid IS NULL OR paid >= sent"],
)

slow = Model(
    "slow",
    of=invoices,
    label=Label("days_late > 14", known="paid", name="slow"),
    features=[
        Feature("amount", "amount"),
        Feature("month", "month(sent)"),
        Feature("customer_slow_120d", "avg(days_late > 14)", over="customer", window="120d"),
        Feature("customer_last_days", "last(days_late)", over="customer", window="365d"),
        Feature("customer_invoices_30d", "count(*)", over="customer", window="30d"),
    ],
    split=("2025-08-01", "2025-10-01"),
    train="logistic",
    gate=Gate(metric="roc_auc", beat_baseline=0.05, p99_ms=10),
    words=Words(
        title="Slow payers",
        question="Will this invoice be paid more than 14 days late?",
        unit_singular="invoice",
        unit_plural="invoices",
        positive_word="slow",
    ),
)

project = Project("{name}", models=[slow])
'''

TOML = """# What things cost here, in US dollars; every key and its default is in docs/configuration.md.
[prices]
usd_per_core_hour = 0.04
usd_per_gb_month = 0.023
"""


def init(folder: Path, file: Path | None = None, *, label: str = "", time: str = "") -> list[Path]:
    """Write project.py, tenon.toml and .gitignore into `folder`, and return what was written; never overwrites."""
    if (folder / "project.py").exists():
        raise UsageError(
            sentence("a folder without a project", "a project.py", at=str(folder), hint="name another folder")
        )
    if (label or time) and file is None:
        raise UsageError(sentence("--from FILE with --label and --time", "no file"))
    name = folder.resolve().name
    declared = declaration(file, name, label=label, time=time) if file else EXAMPLE.replace("{name}", name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "project.py"]
        written[0].write_text(declared, "utf-8")
        if file is None:
            (folder / "raw").mkdir(exist_ok=True)
            written.append(folder / "raw" / "invoices.csv")
            with written[-1].open("w", encoding="utf-8", newline="") as out:
                csv.writer(out, lineterminator="\n").writerows(_invoices())
        for other, text in (("tenon.toml", TOML), (".gitignore", ".tenon/\nreports/\n")):
            if not (folder / other).exists():
                written.append(folder / other)
                written[-1].write_text(text, "utf-8")
    except OSError as error:
        raise InputError(sentence("a folder to write to", f"{error.strerror}", at=str(folder))) from error
    return written


def _invoices() -> Iterator[list[object]]:
    """Make 6,000 invoices of a year, the same every time."""
    chance = random.Random(2025)
    habits = {f"C{number:03}": chance.betavariate(1.2, 3.0) for number in range(150)}
    yield ["invoice", "customer", "amount", "sent", "paid", "days_late"]
    start = datetime(2025, 1, 1)
    for invoice, day in enumerate(sorted(chance.uniform(0, 365) for _ in range(6000)), 1):
        customer = chance.choice(list(habits))
        amount = round(chance.lognormvariate(6.5, 1.0), 2)
        sent = start + timedelta(days=day)
        slow = chance.random() < min(0.95, habits[customer] * (1.6 if amount > 1500 else 0.8))
        days = chance.gauss(28, 6) if slow else chance.gauss(2, 4)
        paid = sent + timedelta(days=max(0.1, 30 + days))
        late: list[object] = [paid.isoformat(timespec="seconds"), round(days, 1)]
        yield [
            invoice,
            customer,
            amount,
            sent.isoformat(timespec="seconds"),
            *(late if paid.year == 2025 else ["", ""]),
        ]


def declaration(file: Path, name: str, *, label: str, time: str) -> str:
    """Write the project.py for somebody's file, with the columns found in it."""
    from tenon import contract
    from tenon.flow import single

    rows = single.table(file).rows
    inferred = contract.infer(rows, name)
    names = [column.name for column in inferred.columns]
    if time and time not in names:
        raise UsageError(
            sentence("a column of the file for --time", f"'{time}'", at=str(file), hint=nearest(time, names))
        )
    source = "".join(char if char.isalnum() else "_" for char in file.name.split(".")[0].lower())
    columns = "".join(f"        {_column(column)},\n" for column in inferred.columns)
    head = (
        "from tenon import Column, Feature, Label, Model, Project, Source"
        if label
        else "from tenon import Column, Project, Source"
    )
    parts = [
        f'"""The {source} of {file.name}. Columns were inferred from the file: read them, and mend what is wrong."""\n',
        f"{head}\n",
        f"{source} = Source(\n    {source!r},\n    {str(file.resolve())!r},\n    key=[{names[0]!r}],",
    ]
    if time:
        parts.append(f"    time={time!r},")
    parts.append(f"    columns=[\n{columns}    ],\n)\n")
    if not label:
        parts.append(f"project = Project({name!r}, sources=[{source}])\n")
        return "\n".join(parts)
    if not time:
        raise UsageError(
            sentence("--time with --label", "no --time", hint=f"name the column of time: {', '.join(names)}")
        )
    used = [column.name for column in inferred.columns if column.name not in label and column.name != time]
    features = "".join(f"        Feature({other!r}, {other!r}),\n" for other in used)
    first, second = _split(rows[time])
    parts.append(
        f"model = Model(\n    'model',\n    of={source},\n    label=Label({label!r}),\n"
        f"    # Keep only what is known when you predict: mark the other columns late=True above.\n"
        f"    features=[\n{features}    ],\n    split=({first!r}, {second!r}),\n)\n"
    )
    parts.append(f"project = Project({name!r}, models=[model])\n")
    return "\n".join(parts)


def _column(column: Column) -> str:
    words = [repr(column.name), repr(column.type)]
    if column.nullable:
        words.append("nullable=True")
    if column.between is not None:
        words.append(f"between={column.between!r}")
    if column.one_of is not None:
        words.append(f"one_of={column.one_of!r}")
    return f"Column({', '.join(words)})"


def _split(times: object) -> tuple[str, str]:
    """Choose the moments before which 60 % and 80 % of the rows lie."""
    from polars import Series

    assert isinstance(times, Series)
    known = times.drop_nulls().sort()
    if known.dtype.is_temporal() and known.len() >= 10:
        return str(known[int(known.len() * 0.6)]), str(known[int(known.len() * 0.8)])
    raise InputError(
        sentence("a column of timestamps or dates to split by", str(times.dtype), hint="name it with --time")
    )
