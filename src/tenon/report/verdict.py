"""Two questions everybody asks, answered by rules that fit on a page: is it good enough, and is it safe to use?

Good enough   yes      the gate allowed this version
              no       the gate refused it, or the run came to nothing
              unknown  no gate has judged it

Safe to use   no       not good enough to begin with; or a finding of severity error in the newest watching that says
                       harm is done: worse answers, failures, silence
              unknown  this version has never been watched at work
              care     a warning, or any finding that says harm may come (inputs that moved, went missing or are new);
                       raw bytes that cannot be accounted for; quality in use unknown
              yes      none of these

A reason carries the words and, where it rests on figures, their keys; the pages word the rest. Nothing here is a new
measurement: what is beyond noise was decided by the gate and by watching. Rejected: one overall score, which nobody can
argue with because nobody knows what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Facts = Mapping[str, Any]
# Findings that say that harm may come, not that it has.
MAY_HARM = frozenset({"watch/drift", "watch/score-drift", "watch/missing", "watch/unseen"})


def judge(facts: Facts) -> dict[str, Any]:
    """Answer both questions from gathered facts, each with its reasons."""
    return {"good": _good(facts), "safe": _safe(facts)}


def _good(facts: Facts) -> dict[str, Any]:
    figures = facts["figures"]
    checks = facts["tables"].get("gate", {"rows": []})["rows"]
    if "gate.allowed" not in figures:
        missing = [one["said"] for one in facts["missing"] if one["what"] in ("training", "quality", "a version")]
        return {"answer": "unknown", "because": [_reason(one) for one in missing or ["no gate has judged it"]]}
    if figures["gate.allowed"]["value"]:
        return {"answer": "yes", "because": [_reason(check["said"]) for check in checks if check["said"]]}
    return {"answer": "no", "because": [_reason(check["said"]) for check in checks if not check["passed"]]}


def _safe(facts: Facts) -> dict[str, Any]:
    figures = facts["figures"]
    watched = [one for one in facts["findings"] if one["about"] == "watch" and one["severity"] in ("error", "warning")]
    errors = [one for one in watched if one["severity"] == "error" and one["code"] not in MAY_HARM]
    reasons = [_reason(one["said"], one["code"]) for one in (*errors, *(one for one in watched if one not in errors))]
    lost = figures.get("data.unaccounted_bytes")
    if lost and lost["value"]:
        reasons.append(_reason(f"{lost['value']:,.0f} bytes of the raw files are not accounted for"))
    if "gate.allowed" in figures and not figures["gate.allowed"]["value"]:
        return {"answer": "no", "because": [_reason("it is not good enough to be used"), *reasons]}
    if errors:
        return {"answer": "no", "because": reasons}
    if "live.rows" not in figures or facts["lineage"]["watched"] not in ("", facts["lineage"]["version"]):
        return {"answer": "unknown", "because": [_reason("it has not been watched at work yet"), *reasons]}
    if "live.judged" not in figures:
        reasons.append(_reason("the outcomes of its live predictions are not known yet"))
    if reasons:
        return {"answer": "care", "because": reasons}
    return {"answer": "yes", "because": [_reason("nothing watched has moved beyond its limit")]}


def _reason(said: str, code: str = "") -> dict[str, str]:
    return {"said": said, "code": code}
