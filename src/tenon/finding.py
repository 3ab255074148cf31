"""A Finding is the one shape for anything tenon wants to tell a person about their data, run, model or service.

Findings are values: they are made where the fact is known, kept with what they are about, and printed in one place
(`cli`) or drawn in one place (`report`). A finding is not an error: bad data is a value, and a stage that can go on,
goes on. `CODES` is the whole vocabulary; each code has a page in docs/findings with what it checks, why it matters, an
example, what to do, and its known limits (a test compares the two lists). Codes are `room/what`, in words, because a
person meets them in a terminal before they meet the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]

# code -> what it says when nothing more is known. Keep sorted; docs/findings/<code with / as ->.md explains it.
CODES: dict[str, str] = {
    "contract/between": "Values lie outside the range their column allows.",
    "contract/finite": "A column of numbers holds NaN or infinity.",
    "contract/freshness": "The newest row is older than the contract allows.",
    "contract/key": "A key is missing, or identifies more than one row.",
    "contract/missing-column": "A column of the contract did not come.",
    "contract/null": "A value is missing where it may not be.",
    "contract/one-of": "Values are not among those their column allows.",
    "contract/pattern": "Text does not have the form its column demands.",
    "contract/rule": "Rows break a rule written in SQL.",
    "contract/type": "Values cannot be read as the type of their column.",
    "contract/unique": "A value occurs twice in a column where it may not.",
    "contract/unknown-column": "A column came that a strict contract does not name.",
    "feature/constant": "A feature has one value, or none, in every row.",
    "feature/known-early": "Rows claim to be known before they happened.",
    "feature/never-known": "Rows never became known and are in no window.",
    "feature/repeated-fact": "Rows share key and time with another and are taken for its versions.",
    "ingest/ambiguous-date": "Day and month cannot be told apart in a column of dates.",
    "ingest/ambiguous-number": "Commas in a column of numbers may mean decimals or thousands.",
    "ingest/dialect": "How a file is laid out had to be guessed against close rivals.",
    "ingest/empty": "A file has no rows.",
    "ingest/encoding": "A file holds bytes that are not UTF-8.",
    "ingest/mixed-types": "A column holds values of more than one type.",
    "ingest/null-words": "Words were read as missing values; review them.",
    "ingest/quarantined": "Rows could not be read with certainty and wait in quarantine.",
    "ingest/repaired": "Cells were repaired because the repair fits their columns; each is flagged.",
    "ingest/schema-change": "Files or records of one source do not have the same columns.",
    "ingest/skipped": "Bytes that are no rows were skipped under a name.",
    "ingest/truncated": "A file ends in the middle of a row or of its compression.",
    "model/parity": "The compiled model answers differently from the one that was trained.",
    "model/refused": "The gate refuses a version, with the checks that failed.",
    "serving/over-budget": "Answers cost more than their budget allows.",
    "store/blob-corrupt": "Bytes in the store differ from the digest that names them.",
    "store/blob-missing": "A record names bytes that are not in the store.",
    "store/catalog-damaged": "The catalog file is damaged.",
    "store/unreferenced": "The store holds bytes that no record names.",
    "track/dropped": "Metric points were dropped because a bound was reached.",
    "track/interrupted": "A run's process ended without saying how the run went.",
    "training/budget-spent": "A run was stopped because its budget is spent.",
    "training/checkpoint-damaged": "A checkpoint is damaged and was passed over for the one before.",
    "training/communication-bound": "Ranks spend much of a step exchanging gradients or weights.",
    "training/compile": "Whether a compiled model was kept, and what that gained or cost.",
    "training/data-starved": "A run spends much of its time waiting for data.",
    "training/dead-units": "Units of a layer never get a gradient.",
    "training/diverged": "A run was stopped because its loss ran away.",
    "training/does-not-fit": "A run was refused because it would not fit into memory or budget.",
    "training/flat": "A run was stopped because nothing more is to be gained.",
    "training/gave-up": "A run that failed is not begun again.",
    "training/gradient-spike": "A gradient was far larger than is usual for its run.",
    "training/gradient-vanishes": "The gradient does not reach the first layers.",
    "training/hang": "A run stood still, and was ended.",
    "training/hopeless": "A run was stopped because it learns nothing.",
    "training/label-constant": "The label never varies, so nothing can be learnt or judged.",
    "training/loss-not-finite": "A loss or gradient is no number.",
    "training/loss-scale": "The loss scaler of fp16 skips steps again and again.",
    "training/not-better": "A model does not beat its best baseline beyond noise.",
    "training/out-of-memory": "A step ran out of memory and was taken in smaller parts.",
    "training/page-faults": "Every step gives memory back to the system and takes it anew.",
    "training/precision": "Which precision a run trains in, and the proof.",
    "training/rank-died": "A process of a run on several died.",
    "training/restarted": "A run ended or hung and was begun again from its last checkpoint.",
    "training/resume-differs": "A run goes on with other versions or threads than it began with.",
    "training/straggler": "One rank is late at every step, and the others wait for it.",
    "training/suspicious": "A score or a feature is too good to be true.",
    "training/throttled": "A GPU is held back by heat, power or a narrow link, and steps and money are lost.",
    "training/unguarded": "A trainer of one's own ran for long without asking its guard.",
    "training/update-too-large": "A step rewrites a layer instead of improving it.",
    "training/update-too-small": "A step changes the weights by next to nothing.",
    "watch/calibration": "Predictions were off on average, beyond noise and more than in the test.",
    "watch/cost": "An answer costs much more than it used to.",
    "watch/drift": "Features look unlike the training data, beyond noise and season.",
    "watch/dropped": "Answers were given but not recorded.",
    "watch/errors": "More requests failed than allowed.",
    "watch/few-rows": "No window has rows enough to be judged.",
    "watch/label-rate": "What is predicted happens more or less often than in training.",
    "watch/labels-late": "Labels that should be there by now are missing.",
    "watch/latency": "Answers take longer than the limit.",
    "watch/missing": "Values are missing that training had.",
    "watch/performance": "The model is worse in use than in the test that promoted it.",
    "watch/score-drift": "Scores are spread differently than at training, though no feature drifted.",
    "watch/silence": "Traffic stopped, or fell far below what it was.",
    "watch/train-serve-skew": "A feature had another value when served than the same row has offline.",
    "watch/unseen": "A category appears that training never saw.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact a person should know: what was seen, where, and what to do about it.

    `place` is a path a person can open (``file:row:column``, ``$.a[2].b``, ``contract/rule``, ``run/step``).
    `numbers` holds the figures that the sentence in `said` quotes, by name, with units in the names.
    """

    code: str
    severity: Severity
    place: str
    said: str
    hint: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data, as kept in the store and printed by ``--json``."""
        return {
            "code": self.code,
            "severity": self.severity,
            "place": self.place,
            "said": self.said,
            "hint": self.hint,
            "numbers": dict(self.numbers),
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Finding:
        """Read a finding back from plain data; a field it lacks takes its default."""
        names = ("code", "severity", "place", "said", "hint", "numbers")
        return cls(**{name: body[name] for name in names if name in body})


def worst(findings: list[Finding]) -> Severity | None:
    """Return the gravest severity among the findings, or None when there are none."""
    order: tuple[Severity, ...] = ("error", "warning", "info")
    return next((severity for severity in order if any(f.severity == severity for f in findings)), None)
