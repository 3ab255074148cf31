"""From datasets to a gated version: the matrix, the guarded and costed run, compilation, parity, the gate.

Three stages a model. `features` depends on the datasets and the definitions; `run` on the matrix, the split, the
trainer and the seed; `version` on the run and the gate. One changed feature therefore redoes these three and nothing
before them. A version that its gate allows takes the alias `production`, unless the one there is better (`promote.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import msgspec
import polars as pl

from tenon import model, sketch, training
from tenon.contract.column import Column, Source
from tenon.errors import InputError, MissingError, sentence
from tenon.feature import Feature, FeatureSet, Label
from tenon.flow.data import frame, parquet
from tenon.flow.piece import packed
from tenon.flow.work import Stage, Work, once
from tenon.project import Model

# Raise when a stage's code would come to another result from the same input.
FEATURES = 1
RUN = 1
VERSION = 2

MODELS = 3  # two baselines and the model: the parts of the training bar
HALF_STEPS = 100  # a model's part of the bar is half full after so many steps


def compiled(work: Work, declared: Model) -> FeatureSet:
    """Compile the model's features against the project's sources; a fault names the feature."""
    return FeatureSet.compile(declared.features, declared.label, declared.of, work.project.source_map())


def restored(declared: Model, record: Mapping[str, Any]) -> FeatureSet:
    """Compile features as they were when a version was made, from its record; project.py may have moved on since.

    Features that are Python functions are not kept in a record: they must still be in the project, unchanged.
    """
    now = {one.name: one for one in declared.features}
    features = []
    for body in record["definition"]:
        if body["function"]:
            if body["name"] not in now or now[body["name"]].to_dict() != body:
                raise MissingError(
                    sentence(
                        f"the function {body['function']} of feature '{body['name']}'",
                        "a project without it",
                        at=f"features {record['id']}",
                        hint="bring it back, or train a new version",
                    )
                )
            features.append(now[body["name"]])
        else:
            features.append(Feature(**{name: _tuple(value) for name, value in body.items() if name != "function"}))
    sources = {name: source_from_dict(body) for name, body in record["sources"].items()}
    found = FeatureSet.compile(features, Label(**record["label"]), sources[record["spine"]], sources)
    if found.digest != record["digest"]:
        raise MissingError(
            sentence(
                f"the features {record['digest']} that version was made with",
                f"{found.digest}",
                at=f"features {record['id']}",
                hint="train a new version: a function or a meaning has changed since",
            )
        )
    return found


def source_to_dict(source: Source) -> dict[str, Any]:
    """Return a source as plain data, without its path, which is of one machine."""
    return {**asdict(source), "path": ""}


def source_from_dict(body: Mapping[str, Any]) -> Source:
    """Read a source back from plain data; unknown fields are skipped, absent ones take their defaults."""
    known = {field.name for field in fields(Column)}
    columns = [
        Column(**{name: _tuple(value) for name, value in column.items() if name in known}) for column in body["columns"]
    ]
    names = {field.name for field in fields(Source)}
    return Source(**{**{name: value for name, value in body.items() if name in names}, "columns": columns})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# ── the matrix ───────────────────────────────────────────────────────────────────────────────────────────────────────


def features(work: Work, declared: Model, datasets: Mapping[str, Stage]) -> Stage:
    """Join the point-in-time matrix and the online state of everything known, once for these definitions."""
    chosen = compiled(work, declared)
    used = {name: datasets[name].id for name in sorted(chosen.needs)}
    made_of = {
        "code": FEATURES,
        "datasets": used,
        "definition": chosen.digest,
        "split": declared.split,
    }

    def make(_: str) -> dict[str, Any]:
        step = iter(range(6))

        def shown() -> None:
            work.progress(next(step), 5, "computing features")

        shown()
        frames = {name: frame(work, datasets[name].body) for name in used}
        shown()
        matrix = chosen.matrix(frames)
        shown()
        online = chosen.online(frames).to_bytes()
        shown()
        train = matrix.filter(pl.col("_time") < declared.split_at[0])
        if not train.height:
            raise InputError(
                sentence(
                    "rows before the split to train on",
                    f"rows {reach(matrix['_time'])}",
                    at=f"model '{declared.name}': split {declared.split[0]}",
                    hint="move the first date of the split",
                )
            )
        profile = sketch.profile(train.select(chosen.names))
        shown()
        kept = work.store.blobs.put(packed(matrix))
        shown()
        return {
            "model": declared.name,
            "datasets": used,
            "names": list(chosen.names),
            "kinds": dict(chosen.kinds),
            "rows": matrix.height,
            "matrix": kept,
            "online": work.store.blobs.put(online),
            "definition": chosen.definition,
            "label": asdict(chosen.label),
            "spine": chosen.spine.name,
            "sources": {name: source_to_dict(chosen.sources[name]) for name in used},
            "digest": chosen.digest,
            "profile": work.store.blobs.put(profile.to_bytes()),
            "findings": [finding.to_dict() for finding in chosen.examine(frames, matrix)],
        }

    return once(work, "features", declared.name, made_of, make)


def reach(times: pl.Series) -> str:
    """Say from when to when times go."""
    first, last = (str(value) for value in (times.min(), times.max()))
    return f"from {first} to {last}"


def data_of(declared: Model, matrix: pl.DataFrame, names: list[str], kinds: Mapping[str, str]) -> training.Data:
    """Split the labelled rows by time: train before the first date, validation between, test from the second on."""
    first, second = declared.split_at
    labelled = matrix.filter(pl.col("_label").is_not_null()).sort("_time", maintain_order=True)
    time = pl.col("_time")
    sides = {
        "train": labelled.filter(time < first),
        "valid": labelled.filter((time >= first) & (time < second)),
        "test": labelled.filter(time >= second),
    }
    for side, rows in sides.items():
        if not rows.height:
            got = f"labelled rows {reach(labelled['_time'])}" if labelled.height else "no labelled rows"
            raise InputError(
                sentence(
                    f"labelled rows for {side}",
                    got,
                    at=f"model '{declared.name}': split {declared.split}",
                    hint="choose dates inside the data",
                )
            )
    values = set(labelled["_label"].unique().to_list())
    return training.Data(
        **{
            side: training.Part(x=rows.select(names), y=rows["_label"].to_numpy(), time=rows["_time"].to_numpy())
            for side, rows in sides.items()
        },
        names=tuple(names),
        kinds=dict(kinds),
        task="binary" if values <= {0.0, 1.0} else "regression",
    )


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


Train = Callable[[Work, Model, Stage, str], Mapping[str, Any]]


def run(work: Work, declared: Model, matrix: Stage, train: Train) -> Stage:
    """Train the baselines and the model, measured and costed, once for this matrix, trainer and seed."""
    made_of = {
        "code": RUN,
        "features": matrix.id,
        "label": [declared.label.sql, declared.label.known],
        "trainer": declared.trainer_digest,
        "split": declared.split,
        "seed": declared.seed,
        "threshold": declared.threshold,
        "budget": declared.budget.to_dict(),
    }
    return once(work, "run", declared.name, made_of, lambda id: train(work, declared, matrix, id))


def here(
    work: Work, declared: Model, matrix: Stage, id: str, *, join: training.Join = training.Ranks, **setting: Any
) -> dict[str, Any]:
    """Train in this process, as one of the ranks that `join` joins or alone; returns the run's record.

    What `setting` says beside the configuration is kept with the run.
    """
    data = rows_of(work, declared, matrix)
    work.progress(0, MODELS, "training")
    tracked = training.Run.start(
        work.store,
        id,
        model=declared.name,
        trainer=declared.trainer_name,
        features=matrix.id,
        seed=declared.seed,
        config={**work.config.to_dict(), **setting},
        limits=work.config.limits.track,
        clock=work.clock,
        prices=work.config.prices,
        charge=False,  # the stage does, with what surrounds the training
    )
    with tracked:
        guard = training.Guard(budget=declared.budget, prices=work.config.prices, run=tracked, follow=_training(work))
        outcome = training.experiment(data, declared.train, tracked, seed=declared.seed, guard=guard, join=join)
        if declared.threshold is not None:
            outcome = replace(outcome, fitted=replace(outcome.fitted, threshold=declared.threshold))
        compiled = model.compile(outcome.fitted, data)
        proof = model.parity(outcome.fitted, compiled, data.test.x, data.test.y)
        latency = model.latency(model.Predictor.load(compiled.onnx, compiled.manifest), data.test.x)
        tracked.artifact("onnx", compiled.onnx)
        tracked.artifact("manifest", msgspec.json.encode(compiled.manifest))
        tracked.artifact("valid_scores", _scores(data.valid, outcome.scores["valid"]))
        tracked.artifact("test_scores", _scores(data.test, outcome.scores["test"]))
    work.progress(MODELS, MODELS, "training")
    record = work.store.get("run", id)
    assert record is not None, id
    found = outcome.to_dict()
    return {
        **record,
        **{name: value for name, value in found.items() if name not in ("findings", "seconds")},
        "task": data.task,
        "findings": record["findings"] or found["findings"],
        "label": declared.label.sql,
        "parity": proof.to_dict(),
        "latency": latency.to_dict(),
        "threshold": outcome.fitted.threshold,
    }


def rows_of(work: Work, declared: Model, matrix: Stage) -> training.Data:
    """Read what the features came to, split by time."""
    rows = parquet(work, matrix.body["matrix"])
    return data_of(declared, rows, matrix.body["names"], matrix.body["kinds"])


def _training(work: Work) -> Callable[[int, int], None]:
    """Show how far training is: by models, and within one by steps, of which nobody knows how many will be needed."""
    return lambda models, step: work.progress(models - 1 + step / (step + HALF_STEPS), MODELS, "training")


def _scores(part: training.Part, scores: Any) -> bytes:
    """Keep the test period's true labels and scores, for curves that a report may want to draw."""
    return packed(pl.DataFrame({"time": part.time, "label": part.y, "score": scores}))


def scores_of(work: Work, record: Mapping[str, Any], side: str) -> pl.DataFrame:
    """Return the validation or test period of a run as it was kept: time, label and score of each row."""
    return parquet(work, record["artifacts"][f"{side}_scores"])


# ── the version ──────────────────────────────────────────────────────────────────────────────────────────────────────


def version(work: Work, declared: Model, matrix: Stage, trained: Stage, forms: Stage) -> Stage:
    """Hold the run, in the form that answers, against its gate; keep the verdict with all the version came from."""
    made_of = {"code": VERSION, "run": trained.id, "gate": declared.gate.to_dict()}
    record = trained.body

    def make(_: str) -> dict[str, Any]:
        artifacts = record["artifacts"]
        proof = model.Parity.from_dict(record["parity"])
        form = model.Variant.from_dict(next(one for one in forms.body["variants"] if one["chosen"]))
        decision = model.decide(declared.gate, record, proof, form.latency, form.size_bytes, form)
        return {
            "model": declared.name,
            "run": trained.id,
            "features": matrix.id,
            "datasets": dict(matrix.body["datasets"]),
            "onnx": artifacts["onnx"],
            "manifest": artifacts["manifest"],
            "parity": record["parity"],
            "gate": decision.to_dict(),
            "said": decision.said,
            "findings": [finding.to_dict() for finding in decision.findings],
            "latency": form.latency.to_dict(),
            "size_bytes": form.size_bytes,
            "variant": {name: forms.body[name] for name in ("id", "key", "chosen")},
            "threshold": record["threshold"],
        }

    def settle(body: Mapping[str, Any]) -> Mapping[str, Any]:
        # The number people say is given where the record is committed, so that no two versions share one.
        earlier = work.store.get("version", body["id"])
        numbers = [row["number"] for row in work.store.find("version", model=declared.name)]
        return {**body, "number": earlier["number"] if earlier else max(numbers, default=0) + 1}

    return once(work, "version", declared.name, made_of, make, settle=settle)
