"""Which version answers: aliases, promotion past the gate, rollback, and the audit of what served when.

An alias is a record; every move is also an event, committed with it, and events are never changed. A version takes an
alias only when its gate allowed it; a person may insist, with a reason, and the audit keeps that. Rolling back gives
the alias to the version that had it before, as often as there is one before.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import Any

from tenon.errors import GateError, MissingError, UsageError, nearest, sentence
from tenon.flow.work import Work

BY_GATE = "its gate allowed it"  # the reason of a promotion that nobody made by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A move of an alias: to which version (id, its beginning, or number), and why."""

    model: str = ""
    version: str = ""
    alias: str = "production"
    reason: str = ""
    despite_gate: bool = False


def version(work: Work, model: str, name: str) -> dict[str, Any]:
    """Return the version of that id, beginning of an id, number or alias; of `model` when it is given."""
    every = of_model(work, "version", model)
    aliases = {row["version"]: row["alias"] for row in of_model(work, "alias", model)}
    found = [
        row
        for row in every
        if row["id"] == name
        or str(row["number"]) == name
        or aliases.get(row["id"]) == name
        or (len(name) >= 4 and row["id"].startswith(name))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(f"{row['id']} ({row['model']})" for row in found)
        raise UsageError(sentence("one version", f"'{name}', which is {ids}", hint="give --model or more of the id"))
    names = [row["id"] for row in every]
    hint = nearest(name, names) if names else "run `tenon run` first"
    raise MissingError(sentence("a version of this project", f"'{name}'", hint=hint))


def of_model(work: Work, kind: str, model: str, *, limit: int | None = None) -> list[dict[str, Any]]:
    """List records of a kind, newest first; of one model when it is named: one that is, or was, in the project."""
    if not model:
        return work.store.find(kind, limit=limit)
    found = work.store.find(kind, limit=limit, model=model)
    if not found and not work.store.find("run", limit=1, model=model):
        work.model(model)  # says which there are when nobody ever had this name
    return found


def current(work: Work, model: str, alias: str = "production") -> dict[str, Any] | None:
    """Return the version that has the alias now, or None."""
    held = work.store.get("alias", f"{model}/{alias}")
    return work.store.get("version", held["version"]) if held else None


def versions(work: Work, model: str = "") -> list[dict[str, Any]]:
    """List versions, newest first, with the aliases they hold and their first test metric in words."""
    held: dict[str, list[str]] = {}
    for row in work.store.find("alias"):
        held.setdefault(row["version"], []).append(row["alias"])
    found = []
    for row in of_model(work, "version", model):
        run = work.store.get("run", row["run"]) or {}
        first = next(iter(run.get("metrics", {}).get("test", {}).items()), None)
        score = f"{first[0]} {first[1]['value']:.4f}" if first else "–"
        found.append({**row, "aliases": held.get(row["id"], []), "score": score})
    return found


def promote(work: Work, move: Move) -> dict[str, Any]:
    """Move the alias to the version and return the event; GateError when the gate refused it and nobody insists."""
    chosen, reason = allowed(work, move)
    return _move(work, chosen["model"], move.alias, chosen["id"], reason)


def allowed(work: Work, move: Move) -> tuple[dict[str, Any], str]:
    """Return the version and the reason to keep; GateError when its gate refused it and nobody insists."""
    chosen = version(work, move.model, move.version)
    gate = chosen["gate"]
    if not gate["allowed"] and not move.despite_gate:
        failed = "; ".join(check["said"] for check in gate["checks"] if not check["passed"])
        raise GateError(
            sentence(
                "a version its gate allows",
                f"{chosen['id']}, refused: {failed}",
                at=f"{chosen['model']}/{move.alias}",
                hint="train a better one, or insist with --despite-gate --reason WHY",
            )
        )
    if not gate["allowed"] and not move.reason:
        raise UsageError(sentence("--reason with --despite-gate", "no reason", hint="say why; the audit keeps it"))
    despite = " (despite its gate)" if not gate["allowed"] else ""
    return chosen, move.reason + despite


def rollback(work: Work, move: Move) -> dict[str, Any]:
    """Give the alias back to the version that had it before, and return the event."""
    model = work.model(move.model).name
    trail = [row for row in work.store.events("alias", model) if row["alias"] == move.alias]
    # Walk the trail like a page history: a rollback steps back, anything else is a new page.
    past: list[str] = []
    for row in trail:
        if row.get("rollback"):
            past = past[:-1]
        else:
            past.append(row["version"])
    if len(past) < 2:
        raise MissingError(
            sentence("a version before this one", "none", at=f"{model}/{move.alias}", hint="promote one by its id")
        )
    return _move(work, model, move.alias, past[-2], move.reason, rollback=True)


def _move(work: Work, model: str, alias: str, to: str, reason: str, *, rollback: bool = False) -> dict[str, Any]:
    with work.store.atomic():
        held = work.store.get("alias", f"{model}/{alias}")
        previous = held["version"] if held else ""
        event = {
            "model": model,
            "alias": alias,
            "version": to,
            "previous": previous,
            "reason": reason,
            "by": who(),
            "rollback": rollback,
        }
        if previous != to:
            now = work.clock()
            name = f"{model}/{alias}"
            body = {
                "id": name,
                "model": model,
                "alias": alias,
                "version": to,
                "at": now,
                "reason": reason,
            }
            work.store.put("alias", name, body, at=now)
            work.store.event("alias", model, event, at=now)
            if alias == "production":
                end_trial(work, model, "promoted" if trial_of(work, model).get("version") == to else "base changed", "")
    return event


def trial_of(work: Work, model: str) -> dict[str, Any]:
    """Return the trial that is under way for a model; {} when there is none."""
    found = work.store.find("trial", limit=1, model=model, state="running")
    return found[0] if found else {}


def end_trial(work: Work, model: str, state: str, why: str) -> dict[str, Any]:
    """End the trial that is under way, if any, and record it; return its record, or {}."""
    with work.store.atomic():
        held = trial_of(work, model)
        if held:
            now = work.clock()
            held = {**held, "state": state, "why": why, "ended": now}
            work.store.put("trial", held["id"], held, at=held["at"])
            event = {name: held[name] for name in ("trial_kind", "version", "base", "share")}
            work.store.event("trial", model, {**event, "state": state, "why": why, "by": who()}, at=now)
    return held


def who() -> str:
    """Name the person whose account this is."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container without a user of that number


def put_aside(work: Work, model: str, version: str, alias: str = "production") -> str:
    """Name the person who last moved the alias away from this version; "" when nobody did, or a better one came."""
    away = [row for row in work.store.events("alias", model) if row["alias"] == alias and row["previous"] == version]
    return str(away[-1]["by"]) if away and away[-1]["reason"] != BY_GATE else ""


def audit(work: Work, model: str = "") -> list[dict[str, Any]]:
    """Tell, oldest first, every move of an alias, every trial, and every start, swap and stop of a service."""
    of_model(work, "version", model)
    trail = []
    for row in work.store.events("alias", model or None):
        what = f"{row['alias']} {'rolled back' if row.get('rollback') else 'moved'} from {row['previous'] or 'nothing'}"
        why = f"{row['reason'] or 'no reason given'}, by {row['by']}"
        trail.append({**row, "kind": "alias", "what": what, "why": why})
    for row in work.store.events("trial", model or None):
        share = f" of {100 * row['share']:g} %" if row["share"] else ""
        why = "; ".join(filter(None, (row["why"], f"by {row['by']}")))
        what = f"{row['trial_kind']}{share} {row['state']}"
        trail.append({**row, "model": row["subject"], "kind": "trial", "what": what, "why": why})
    for row in work.store.events("serving", model or None):
        place = f"{row.get('host', '')}:{row.get('port', '')}, process {row.get('pid', '')}"
        trail.append({**row, "model": row["subject"], "kind": "serving", "what": row["state"], "why": place})
    return sorted(trail, key=lambda row: row["seq"])
