"""A file is scored by the body that answers requests: the same bits, the same refusals, nothing lost on the way."""

from __future__ import annotations

import json
import random
from pathlib import Path

import polars as pl

from tenon.errors import InputError
from tenon.flow import Work, live
from tenon.serving import Client, Settings, build_app, running

HEADER = "invoice,customer,amount,sent"


def rows_file(path: Path, count: int, *extra: str) -> list[dict[str, object]]:
    """Write rows of known and unknown customers, over many months; return them as a request has them."""
    dice = random.Random(4)
    rows: list[dict[str, object]] = []
    for number in range(count):
        sent = f"2025-{dice.randint(8, 12):02}-{dice.randint(1, 28):02}T{dice.randint(0, 23):02}:00:00"
        customer = f"C{dice.randint(1, 60):03}"
        rows.append(
            {"invoice": number, "customer": customer, "amount": dice.randint(1, 10_500_000) / 100, "sent": sent}
        )
    lines = [",".join(str(value) for value in row.values()) for row in rows]
    path.write_text("\n".join((HEADER, *lines, *extra)) + "\n", "utf-8")
    return rows


def test_a_file_and_the_service_give_the_same_bits_and_refuse_the_same_rows(work: Work, tmp_path: Path) -> None:
    rows = rows_file(tmp_path / "rows.csv", 700)
    done = live.predict(work, live.Prediction(rows=tmp_path / "rows.csv", out=tmp_path / "out.parquet"))
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert done.rows == found.height == 700
    service = live.service(work, live.awaken(work, "", "production"))
    answered: list[tuple[float | None, bool | None]] = []
    with running(build_app([service], settings=Settings())) as url, Client(url) as client:
        for row in rows:
            try:
                (one,) = client.predict("slow", [row])["predictions"]
                answered.append((one["score"], one["decision"]))
            except InputError:
                answered.append((None, None))
    assert list(zip(found["score"], found["decision"], strict=True)) == answered
    refused = found.filter(pl.col("score").is_null())
    assert 0 < refused.height == done.refused < 100  # what is above the contract's bound of the amount, here and there
    assert refused["fault"].str.contains("amount: expected").all()
    assert found["score"].n_unique() > 300


def test_what_cannot_be_read_waits_beside_the_output_and_what_it_cost_is_charged(work: Work, tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.csv", 50, "8,C001,much,2025-12-01T10:00:00", "9,C001,5,not a day")
    done = live.predict(work, live.Prediction(rows=tmp_path / "rows.csv", out=tmp_path / "out.csv"))
    assert (done.rows, done.quarantined) == (50, 2)
    waiting = pl.read_parquet(tmp_path / "out.quarantine.parquet")
    assert done.quarantine == str(tmp_path / "out.quarantine.parquet")
    assert sorted(
        value for value in waiting["raw"].to_list() if b"much" in bytes(value) or b"not a day" in bytes(value)
    )
    (entry,) = work.store.entries(subject="slow", kind="request")
    assert (entry.quantity, entry.note) == (50, "file rows.csv") and entry.usd == done.usd > 0
    told = json.loads(json.dumps(done.to_dict()))
    assert told["rows_per_s"] > 0 and told["usd"] == done.usd


def test_all_formats_in_give_the_same_scores(work: Work, tmp_path: Path) -> None:
    rows_file(tmp_path / "rows.csv", 60)
    pl.read_csv(tmp_path / "rows.csv").write_ndjson(tmp_path / "rows.jsonl")
    pl.read_csv(tmp_path / "rows.csv", try_parse_dates=True).write_parquet(tmp_path / "rows.parquet")
    scores = []
    for name in ("rows.csv", "rows.jsonl", "rows.parquet"):
        live.predict(work, live.Prediction(rows=tmp_path / name, out=tmp_path / "out.parquet"))
        scores.append(pl.read_parquet(tmp_path / "out.parquet").sort("invoice")["score"].to_list())
    assert scores[0] == scores[1] == scores[2]
