"""The findings of watching in the words of someone who decides: what happened, and what is being done about it.

A finding's own sentence is exact and uses the terms of the trade (PSI, AUC). Here each code has sentences without them,
with the same figures, quoted from the finding's numbers; the first sentence whose figures are known is said. A code
that is not here is quoted as it was said, up to its first full stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenon.report import word
from tenon.report.page import HOLE, Line, Quoted, has, rows_of, say, value

Facts = Mapping[str, Any]

# code -> what happened, the fullest sentence first
HAPPENED: dict[str, tuple[str, ...]] = {
    "watch/performance": (
        "{when} it told {unit_plural} apart less well than promised: right {alert.performance.roc_auc:of_hundred} "
        "times in 100 instead of {alert.performance.roc_auc_test:of_hundred}.",
        "{when} its answers were worse than promised.",
    ),
    "watch/calibration": (
        "{when} it expected {alert.calibration.predicted:of_hundred} in 100 {unit_plural} to be {positive_word}; "
        "{alert.calibration.rate:of_hundred} were.",
        "{when} its answers were off on average.",
    ),
    "watch/label-rate": (
        "{when} {alert.label-rate.rate:of_hundred} in 100 {unit_plural} were {positive_word}, unlike the times it "
        "learned from.",
        "What it predicts happens more or less often than when it learned.",
    ),
    "watch/drift": (
        "{drift.over:count} of its {drift.columns:count} inputs no longer look like what it learned from, {most} most "
        "of all.",
        "Some of its inputs no longer look like what it learned from.",
    ),
    "watch/score-drift": ("Its answers are spread differently than when it was built.",),
    "watch/missing": ("Values are missing from its inputs that used to be there.",),
    "watch/unseen": ("It is asked about kinds of {unit_plural} it never saw while it learned.",),
    "watch/latency": (
        "{when} 1 answer in 100 took longer than {alert.latency.p99_ms:ms}; {alert.latency.limit_ms:ms} is allowed.",
        "Answers take longer than allowed.",
    ),
    "watch/errors": ("Requests fail more often than allowed.",),
    "watch/cost": ("An answer costs much more than it used to.",),
    "serving/over-budget": ("It costs more than its budget allows, and a cheaper version or nobody answers.",),
    "watch/silence": ("It is asked much less than usual, or not at all.",),
    "watch/labels-late": ("Outcomes that should be known by now are missing, so its quality cannot be told.",),
    "watch/dropped": ("Some answers were given but not recorded.",),
    "watch/train-serve-skew": ("Some inputs had other values in use than the same {unit_plural} have in its history.",),
}

# code -> what is to be done, to follow "Next: "
NEXT: dict[str, str] = {
    "watch/performance": "train it anew on recent data, or go back to a version that did better.",
    "watch/calibration": "adjust its probabilities on recent data before they are added up or used as limits.",
    "watch/label-rate": "train it anew on data that includes these times.",
    "watch/drift": "find out whether a source changed or the world did, and train it anew if the world did.",
    "watch/score-drift": "find out whether the version in use is the one that was approved.",
    "watch/missing": "mend the source of the missing values.",
    "watch/unseen": "find out whether the new kinds are here to stay, and train it anew if they are.",
    "watch/latency": "look at the machine it runs on.",
    "watch/errors": "look at the messages of the failed requests.",
    "watch/cost": "compare with the version and machine of before.",
    "serving/over-budget": "raise its budget, or find who asks so much.",
    "watch/silence": "find out whether those who ask still reach it.",
    "watch/labels-late": "bring in the outcomes.",
    "watch/dropped": "give recording more room.",
    "watch/train-serve-skew": "mend the input that differs before anything else.",
}


def happened(facts: Facts, reason: Mapping[str, str]) -> Line:
    """Say what happened in plain words; a reason of no known code is quoted up to its first full stop."""
    for text in HAPPENED.get(reason["code"], ()):
        keys = [match[1] for match in HOLE.finditer(text)]
        if all(key in facts["words"] or key in ("most", "when") or has(facts, key) for key in keys):
            return say(facts, text, most=most_moved(facts), when=_when(facts, reason["code"]))
    return (sentence_case(reason["said"].split(". ")[0]),)


def next_step(finding: Mapping[str, Any]) -> str:
    """Say what is to be done about a finding, in plain words."""
    return NEXT.get(str(finding["code"]), str(finding["hint"]) or "look at the manager's page.")


def most_moved(facts: Facts) -> str:
    """Name the input that moved most, as watching found, or as the windows show."""
    prefix = "alert.drift.psi_"
    moved = {key.removeprefix(prefix): value(facts, key) for key in facts["figures"] if key.startswith(prefix)}
    if moved:
        return str(max(moved, key=lambda name: (moved[name], name)))
    return next((str(row["column"]) for row in rows_of(facts, "drift") if row["column"] != "score"), "none")


def _when(facts: Facts, code: str) -> str:
    key = f"alert.{code.rpartition('/')[2]}.start_s"
    if not has(facts, key):
        return "Lately"
    return f"In the {window_name(facts)} of {word.day(value(facts, key))}"


def window_name(facts: Facts) -> str:
    """Call a watched window by its length: day, week, or just window."""
    for row in rows_of(facts, "windows"):
        start, end = word.instant(row["start"]), word.instant(row["end"])
        if start is not None and end is not None:
            return {1: "day", 7: "week"}.get(round((end - start) / 86_400), "window")
    return "window"


def marked(text: str) -> Line:
    """Turn words in backticks into names and commands in the fixed-width face."""
    return tuple(Quoted(part) if i % 2 else part for i, part in enumerate(text.split("`")) if part)


def sentence_case(text: str) -> str:
    """Begin words with a capital letter and end them with a full stop unless they have an end."""
    bare = (text[:1].upper() + text[1:]).rstrip()
    return bare if bare.endswith((".", "!", "?", "…")) else bare + "."
