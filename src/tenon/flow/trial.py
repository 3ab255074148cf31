"""Trials: another version on live traffic, as a canary that answers a share or a shadow that only scores along.

A trial is a record; its beginning, every change of its share and its end are events beside those of the alias. A
running service looks for it every second, brings the version in, and writes down what it has seen; a canary that is bad
beyond noise it ends by itself. One model has one trial at a time. A canary answers people, so that its gate must have
allowed it, as for a promotion; a shadow needs no gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from tenon import serving
from tenon.errors import MissingError, UsageError, sentence
from tenon.flow import promote
from tenon.flow.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """What to try: the version, its share of the requests (0 for a shadow), and how far it may differ."""

    move: promote.Move
    share: float = 0.0
    bounds: serving.Bounds = serving.Bounds()

    @property
    def kind(self) -> str:
        """Say whether it answers."""
        return "canary" if self.share else "shadow"


def share_of(text: str) -> float:
    """Read a share such as 5% or 0.05; UsageError when it is none between 0 and 1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UsageError(sentence("a share such as 5% or 0.05", f"'{text}'", at="--share"))
    return share


def begin(work: Work, asked: Try) -> dict[str, Any]:
    """Begin a trial, or change the share of the one under way with this version; return its record."""
    move = asked.move
    if asked.share:
        chosen, reason = promote.allowed(work, move)
    else:
        chosen, reason = promote.version(work, move.model, move.version), move.reason
    model = chosen["model"]
    with work.store.atomic():
        base = promote.current(work, model)
        if base is None or base["id"] == chosen["id"]:
            got = "one that is in production already" if base else "a model with nothing in production"
            hint = "" if base else "promote a version first"
            raise UsageError(sentence("a version to try beside the one in production", got, at=model, hint=hint))
        held, now = promote.trial_of(work, model), work.clock()
        same = held and (held["version"], held["trial_kind"]) == (chosen["id"], asked.kind)
        if held and not same:
            promote.end_trial(work, model, "stopped", f"another trial begins, of {chosen['id']}")
        if not same:
            name = sha256(f"{model}/{chosen['id']}/{base['id']}/{asked.kind}/{now!r}".encode()).hexdigest()[:12]
            held = {"id": name, "model": model, "version": chosen["id"], "base": base["id"], "at": now}
            held |= {"trial_kind": asked.kind, "state": "running", "evidence": {}, "verdict": {}, "why": ""}
        held |= {"share": asked.share, "bounds": asdict(asked.bounds), "reason": reason, "by": promote.who()}
        work.store.put("trial", held["id"], held, at=held["at"])
        event = {name: held[name] for name in ("trial_kind", "version", "base", "share", "by")}
        work.store.event("trial", model, {**event, "state": "changed" if same else "begun", "why": reason}, at=now)
    return held


def stop(work: Work, model: str, reason: str) -> dict[str, Any]:
    """End the trial under way and return its record; MissingError when there is none."""
    name = work.model(model).name
    held = promote.end_trial(work, name, "stopped", reason)
    if not held:
        raise MissingError(sentence("a trial under way", "none", at=name, hint="tenon models canary or shadow"))
    return held


def latest(work: Work, model: str) -> dict[str, Any]:
    """Return the newest trial of a model; MissingError when it never had one."""
    name = work.model(model).name
    found = work.store.find("trial", limit=1, model=name)
    if not found:
        raise MissingError(sentence("a trial of this model", "none", at=name, hint="tenon models canary or shadow"))
    return found[0]


# ── for a running service ────────────────────────────────────────────────────────────────────────────────────────────


def current(work: Work, model: str) -> serving.Trial | None:
    """Return the trial that a service of this model should run now."""
    held = promote.trial_of(work, model)
    if not held:
        return None
    return serving.Trial(
        id=held["id"],
        model=model,
        version=held["version"],
        kind=held["trial_kind"],
        share=held["share"],
        bounds=serving.Bounds(**held["bounds"]),
        evidence=held["evidence"],
    )


def judged(work: Work, model: str, body: Mapping[str, Any]) -> None:
    """Keep what a service has seen of a trial; one that it ended is rolled back, with the reason, for the audit."""
    with work.store.atomic():
        held = work.store.get("trial", body["trial"])
        if held is None:
            return
        held = {**held, "evidence": body["evidence"], "verdict": body["verdict"]}
        work.store.put("trial", held["id"], held, at=held["at"])
        if body["ended"] and held["state"] == "running":
            promote.end_trial(work, model, "rolled back", body["verdict"]["why"])
