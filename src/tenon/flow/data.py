"""From raw files to a dataset: ingest each source, derive its columns, hold it to its contract.

Two stages a source. `ingest` depends on the bytes of the files and on the columns that are read; `dataset` on what was
ingested, on the derived columns, the rules, and on the datasets it looks things up in. A mended rule therefore reads no
raw file again. Rows that break the contract go to the dataset's own quarantine with the rules they broke, so that rows
in = rows good + rows quarantined, which is checked here before anything is committed.

Rows are kept in pieces (`piece`): what a changed file or rule leaves as it was is in the store already. A dataset has a
`content`, the name of its rows: datasets of the same rows are one version, whatever they were made of (`history`).
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

import tenon
from tenon import contract, engine, ingest, sketch
from tenon.contract.column import Source
from tenon.errors import ConfigError, ContractError, InputError, sentence
from tenon.flow import history, piece
from tenon.flow.work import Stage, Work, digest, file_digest, once
from tenon.training import setting

# Raise when a stage's code would come to another result from the same input.
INGEST = 1
DATASET = 1


def files_of(work: Work, source: Source) -> list[Path]:
    """Find the source's raw files, sorted; none is an error that says where it looked."""
    path = Path(source.path)
    place = path if path.is_absolute() else work.project.root / path
    if place.is_dir():
        found = sorted(file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))
    else:
        anchor = Path(place.anchor)
        found = sorted(file for file in anchor.glob(str(place.relative_to(anchor))) if file.is_file())
    if not found:
        raise InputError(
            sentence(f"files of source '{source.name}'", "none", at=str(place), hint="check the path in project.py")
        )
    return found


def order(sources: Mapping[str, Source]) -> list[str]:
    """Order sources so that each comes after those it looks things up in; a circle is an error."""
    done: list[str] = []

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = " -> ".join((*trail[trail.index(name) :], name))
            raise ConfigError(sentence("lookups without a circle", circle, at=f"source '{name}'"))
        if name in done:
            return
        for column in sources[name].columns:
            if column.of and column.of != name:
                visit(column.of, (*trail, name))
        done.append(name)

    for name in sources:
        visit(name, ())
    return done


def datasets(work: Work) -> dict[str, tuple[Stage, Stage]]:
    """Bring every source of the project to a dataset; return the ingest and dataset stages by source."""
    sources = work.project.source_map()
    found: dict[str, tuple[Stage, Stage]] = {}
    for name in order(sources):
        read = ingested(work, sources[name])
        lookups = {column.of: found[column.of][1] for column in sources[name].columns if column.of}
        found[name] = (read, dataset(work, sources[name], read, lookups))
    return found


def frame(work: Work, record: Mapping[str, Any]) -> pl.DataFrame:
    """Return the rows of a dataset, verified against the digests that name its pieces."""
    return piece.frame(work.store, record)


def parquet(work: Work, digest: str) -> pl.DataFrame:
    """Return the frame kept under a digest; CorruptError when the bytes are not the ones that were put there."""
    return piece.parquet(work.store, digest)


# ── raw files -> typed columns ───────────────────────────────────────────────────────────────────────────────────────


def ingested(work: Work, source: Source) -> Stage:
    """Read the source's raw files into typed Parquet, once for these bytes and these columns."""
    files = files_of(work, source)
    read = [asdict(column) for column in source.columns if not column.derive]
    contents = [file_digest(work, file) for file in files]
    made_of = {
        "code": INGEST,
        "files": [[file.name, content] for file, content in zip(files, contents, strict=True)],
        "columns": [{key: column[key] for key in ("name", "type", "nullable")} for column in read],
        "null": source.null,
        "strict": source.strict,
    }

    def make(_: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="tenon-") as folder, _cluster(work) as cluster:
            done = ingest.ingest(
                ingest.Job(
                    paths=tuple(files),
                    out=Path(folder),
                    name=source.name,
                    source=source,
                    limits=work.config.limits.ingest,
                    engine=cluster,
                ),
                progress=work.progress,
            )
            return {
                "source": source.name,
                "paths": [str(file) for file in files],
                "raw": [
                    {"path": str(file), "bytes": file.stat().st_size, "content": content}
                    for file, content in zip(files, contents, strict=True)
                ],
                **piece.keep(work.store, _batches(done.files)),
                "quarantine": work.store.blobs.put(done.quarantine) if done.quarantine else "",
                "repairs": work.store.blobs.put(done.repairs) if done.repairs else "",
                "rows": done.rows,
                "bytes": done.bytes,
                "quarantined": done.quarantined,
                "repaired": done.repaired,
                "balance": done.balance.to_dict(),
                "findings": [finding.to_dict() for finding in done.findings],
            }

    return once(work, "ingest", source.name, made_of, make)


def _batches(files: tuple[Path, ...]) -> Iterator[pl.DataFrame]:
    """Yield the rows of Parquet files in order, a few at a time."""
    if files:
        yield from pl.scan_parquet(list(files)).collect_batches(chunk_size=piece.BATCH_ROWS, maintain_order=True)


@contextmanager
def _cluster(work: Work) -> Iterator[engine.Ray | engine.Local | None]:
    """Yield where ranges of files are read: the configured cluster, or None for the threads of this process."""
    if work.config.engine.kind == "local":
        yield None
        return
    with engine.open(work.config.engine, work.config.limits.engine) as workers:
        yield workers


# ── typed columns -> dataset under contract ──────────────────────────────────────────────────────────────────────────


def dataset(work: Work, source: Source, read: Stage, lookups: Mapping[str, Stage]) -> Stage:
    """Derive the source's columns, split its rows by its contract, and profile what is good."""
    made_of = {
        "code": DATASET,
        "ingest": read.id,
        "lookups": {name: stage.id for name, stage in sorted(lookups.items())},
        "columns": [asdict(column) for column in source.columns],
        "key": source.key,
        "times": [source.time, source.known],
        "rules": source.rules,
    }

    def make(_: str) -> dict[str, Any]:
        if not read.body["rows"]:
            raise _none(source, read.body, [])
        work.progress(0, 3, f"checking {source.name}")
        rows = frame(work, read.body)
        missing = [column.name for column in source.columns if not column.derive and column.name not in rows.columns]
        if missing:
            raise ContractError(
                sentence(
                    f"column '{missing[0]}'",
                    f"columns {', '.join(rows.columns)}",
                    at=read.body["paths"][0],
                    hint="declare what the file has, or mend the file",
                )
            )
        keys = {name: work.project.source(name).key for name in lookups}
        tables = {name: frame(work, stage.body) for name, stage in lookups.items()}
        whole = contract.derive(rows, source.columns, tables, keys)
        work.progress(1, 3, f"checking {source.name}")
        agreed = contract.Contract.of(source)
        verdict = contract.check(whole, agreed)
        assert verdict.good.height + verdict.bad.height == rows.height, (verdict.good.height, verdict.bad.height)
        if not verdict.good.height:
            raise _none(source, read.body, [one.said for one in verdict.findings if one.severity == "error"])
        work.progress(2, 3, f"checking {source.name}")
        profile = sketch.profile(verdict.good)
        work.progress(3, 3, f"checking {source.name}")
        return {
            "source": source.name,
            "paths": read.body["paths"],
            "raw": read.body.get("raw", []),
            "ingest": read.id,
            "lookups": made_of["lookups"],
            "made": {**_made(work), "declared": digest({"columns": made_of["columns"], "rules": made_of["rules"]})},
            **piece.keep(work.store, [verdict.good]),
            "rows": verdict.good.height,
            "bytes": read.body["bytes"],
            "quarantined": read.body["quarantined"] + verdict.bad.height,
            "quarantine": read.body["quarantine"],
            "bad": work.store.blobs.put(piece.packed(verdict.bad)) if verdict.bad.height else "",
            "repaired": read.body["repaired"],
            "balance": read.body["balance"],
            "contract": work.store.blobs.put(agreed.to_odcs().encode()),
            "profile": work.store.blobs.put(profile.to_bytes()),
            "columns": _columns(source, verdict.good),
            "findings": [*read.body["findings"], *(finding.to_dict() for finding in verdict.findings)],
        }

    return once(work, "dataset", source.name, made_of, make, settle=lambda body: history.numbered(work.store, body))


def _made(work: Work) -> dict[str, Any]:
    """Say with what a dataset is made, beside its raw files and its declaration: the code and the configuration."""
    git = setting.git(work.project.root)
    return {
        "tenon": tenon.__version__,
        "polars": pl.__version__,
        "python": platform.python_version(),
        "config": digest(work.config.to_dict())[:12],
        "git": {"commit": git["commit"][:40], "dirty": git["dirty"]} if git else {},
    }


def _none(source: Source, read: Mapping[str, Any], why: list[str]) -> ContractError:
    """Say that no row of a source is left, and what came in the way of most."""
    total = read["rows"] + read["quarantined"]
    told = [finding for finding in read["findings"] if finding["severity"] != "info"]
    # That a file has no rows follows from what came in the way of them: the cause is told first.
    said = [*why, *(one["said"] for one in sorted(told, key=lambda one: bool(one["code"] == "ingest/empty")))]
    got = f"none of {total:,}" if total else "none"
    wanted = f"rows of '{source.name}' that keep its contract"
    hint = said[0] if said else "read the file beside its contract"
    return ContractError(sentence(wanted, got, at=read["paths"][0], hint=hint))


def _columns(source: Source, rows: pl.DataFrame) -> list[dict[str, Any]]:
    nulls = rows.null_count().row(0, named=True)
    found = []
    for name, kind in rows.schema.items():
        declared = source.column(name)
        found.append(
            {
                "name": name,
                "type": declared.type if declared else str(kind),
                "unit": declared.unit if declared else "",
                "derived": bool(declared and declared.derive),
                "declared": declared is not None,
                "late": bool(declared and declared.late),
                "null_pct": round(100 * nulls[name] / rows.height, 3),
            }
        )
    return found
