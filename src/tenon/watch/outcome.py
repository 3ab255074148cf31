"""What the labels say: performance, calibration, the rate of the label, and labels that do not come.

Judged on closed windows whose labels have come. More positives than in training, probabilities that are too low and a
worse ranking are three views of one thing when they fall in the same windows: the gravest is told, with the figures of
the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tenon import metric
from tenon.finding import Finding
from tenon.watch import noise
from tenon.watch.case import Case, Hit, first_day, others, percent, span
from tenon.watch.expect import Expected
from tenon.watch.window import Window, in_, named, unit

WORTH_RATIO = 0.25  # of the lift over the baseline: a smaller loss is not worth a retraining
WORTH_SCORE = 0.02  # when no baseline is known: of a metric between 0 and 1
WORTH_ERROR = 0.05  # the same for an error, as a share of it
RATE_RATIO = 0.25  # how much the label rate must move, relative to training
RATE_LEAST = 0.01
BIAS_RATIO = 0.15  # how far predictions may be off on average, relative to what happened
BIAS_LEAST = 0.02
LABELS_RATIO = 0.5
_FEW_TESTED = 4  # tested windows from which one may tell how windows vary

# metric -> how it is called, and what it means that it became worse
WORDS: dict[str, tuple[str, str]] = {
    "roc_auc": ("AUC", "told {positive_word} {unit_plural} from the others less well than"),
    "average_precision": ("average precision", "found {positive_word} {unit_plural} less precisely than"),
    "brier": ("Brier score", "gave probabilities further from the truth than"),
    "log_loss": ("log loss", "gave probabilities further from the truth than"),
    "rmse": ("root mean square error", "was further off than"),
    "mae": ("mean absolute error", "was further off than"),
    "r2": ("R²", "explained less than"),
}


def outcomes(case: Case) -> list[Finding]:
    """Judge performance, calibration and label rate together: what falls in the same windows is told once."""
    worse, biased, shifted = _worse(case), _biased(case), _shifted(case)
    found = []
    if worse:
        found.append(_performance(case, worse))
        told = {hit.window.start for hit in worse}
        biased = [hit for hit in biased if hit.window.start not in told]
        shifted = [hit for hit in shifted if hit.window.start not in told]
    if biased:
        found.append(_calibration(case, biased))
        told = {hit.window.start for hit in biased}
        shifted = [hit for hit in shifted if hit.window.start not in told]
    if shifted:
        found.append(_label_rate(case, shifted))
    return found


def _judged(case: Case) -> list[Window]:
    return [window for window in case.recent if window.judged and window.labelled >= case.config.min_rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standard:
    """What a single window is held against: a value, how uncertain it is for one window, and how it is said."""

    value: float
    errors: tuple[float, ...]
    degrees: float
    said: str


def _standard(case: Case, name: str) -> _Standard | None:
    """Return what windows of this model reached when it was tested, or else the whole test and how live windows vary.

    The metric of a whole test is no fair measure of a week: weeks differ in how hard they are, and part of what a
    ranking metric rewards over months is telling bad weeks from good ones.
    """
    tested = case.usual.metrics.get(name, ()) if case.usual is not None else ()
    if len(tested) >= _FEW_TESTED:
        spread = statistics.stdev(tested) * math.sqrt(1 + 1 / len(tested))
        middle = statistics.median(tested)
        said = (
            f"{middle:.2f} in the usual {unit(case.width_s)} it was tested on ({min(tested):.2f} to {max(tested):.2f})"
        )
        return _Standard(value=middle, errors=(spread,), degrees=len(tested) - 1, said=said)
    reference = case.expected.metrics.get(name)
    if reference is None:
        return None
    live = [
        w.metrics[name] for w in case.windows if w.judged and w.labelled >= case.config.min_rows and name in w.metrics
    ]
    errors = [noise.standard_error(one.low, one.high) for one in live]
    among = noise.between([one.value for one in live], errors)
    own = noise.standard_error(reference.low, reference.high)
    said = f"{reference.value:.2f} in the test that promoted it"
    return _Standard(value=reference.value, errors=(own, among), degrees=math.inf, said=said)


def _worse(case: Case) -> list[Hit]:
    """Find windows where the metric is worse than when it was tested: beyond noise, and by enough to matter."""
    name = case.expected.metric
    standard = _standard(case, name)
    windows = [window for window in _judged(case) if name in window.metrics]
    if standard is None or not windows:
        return []
    sign = 1.0 if metric.HIGHER_IS_BETTER[name] else -1.0
    losses = [sign * (standard.value - window.metrics[name].value) for window in windows]
    chances = []
    for loss, window in zip(losses, windows, strict=True):
        own = noise.standard_error(window.metrics[name].low, window.metrics[name].high)
        # The spread of tested windows holds their sampling noise already; live windows may have more of their own.
        errors = (max(own, *standard.errors),) if math.isfinite(standard.degrees) else (own, *standard.errors)
        chances.append(noise.two_sided(loss, *errors, degrees=standard.degrees))
    least = _worth(case.expected, name, standard.value)
    return [
        Hit(window, loss, {})
        for window, loss, held in zip(windows, losses, noise.holm(chances), strict=True)
        if held and loss >= least
    ]


def _worth(expected: Expected, name: str, value: float) -> float:
    """Return how large a loss must be to be worth telling."""
    if math.isfinite(_lift(expected, name)):
        return max(WORTH_RATIO * _lift(expected, name), 1e-9)
    bounded = name in ("roc_auc", "average_precision", "r2")
    return WORTH_SCORE if bounded else WORTH_ERROR * abs(value)


def _lift(expected: Expected, name: str) -> float:
    """Return by how much the model was better than its best baseline on test; not a number when that is unknown."""
    test = expected.metrics.get(name)
    return abs(test.value - expected.baseline_value) if test is not None else math.nan


def _performance(case: Case, hits: Sequence[Hit]) -> Finding:
    name = case.expected.metric
    standard = _standard(case, name)
    assert standard is not None, name
    worst = max(hits, key=lambda hit: hit.size)
    value = worst.window.metrics[name]
    called, meaning = WORDS[name]
    meaning = meaning.format(unit_plural=case.word("unit_plural"), positive_word=case.word("positive_word"))
    said = (
        f"{in_(worst.window)} the model {meaning} when it was tested: {called} {span(value)} "
        f"against {standard.said}{_rate_words(case, worst.window, '; ')}."
    )
    lift = _lift(case.expected, name)
    spent = math.isfinite(lift) and worst.size >= lift
    if spent:
        said += f" That is more than all it was better than the baseline '{case.expected.baseline}' ({lift:.3f})."
    said += others(case, hits, worst)
    numbers = _outcome_numbers(worst.window, len(hits)) | {
        name: value.value,
        f"{name}_low": value.low,
        f"{name}_high": value.high,
        f"{name}_expected": standard.value,
    }
    return Finding(
        code="watch/performance",
        severity="error" if spent else "warning",
        place=f"{case.model}/performance/{name}",
        said=said,
        hint="See which features drifted in the same time, then consider retraining on newer data (tenon run); "
        "`tenon models rollback` if an earlier version did better.",
        numbers=numbers,
    )


def _biased(case: Case) -> list[Hit]:
    """Find windows where predictions were off on average, more than in test and beyond noise."""
    windows = [w for w in _judged(case) if math.isfinite(w.rate) and math.isfinite(w.predicted)]
    tested = case.usual.bias if case.usual is not None else ()
    known = len(tested) >= _FEW_TESTED
    offset = statistics.median(tested) if known else case.expected.bias if math.isfinite(case.expected.bias) else 0.0
    gaps = [window.predicted - window.rate - offset for window in windows]
    every = [w for w in case.windows if w.judged and math.isfinite(w.rate) and w.labelled >= case.config.min_rows]
    among = (
        statistics.stdev(tested) * math.sqrt(1 + 1 / len(tested))
        if known
        else noise.between([w.predicted - w.rate for w in every], [_mean_error(case, w) for w in every])
    )
    degrees = len(tested) - 1 if known else math.inf
    chances = [
        noise.two_sided(gap, _mean_error(case, window), among, degrees=degrees)
        for gap, window in zip(gaps, windows, strict=True)
    ]
    return [
        Hit(window, abs(gap), {})
        for window, gap, held in zip(windows, gaps, noise.holm(chances), strict=True)
        if held and abs(gap) >= max(BIAS_LEAST if case.task == "binary" else 0.0, BIAS_RATIO * abs(window.rate))
    ]


def _mean_error(case: Case, window: Window) -> float:
    """Return the standard error of the mean label of a window."""
    if case.task == "binary":
        share = min(max(window.predicted, 1e-6), 1 - 1e-6)
        return math.sqrt(share * (1 - share) / window.labelled)
    spread = window.metrics.get("rmse")
    return spread.value / math.sqrt(window.labelled) if spread else math.inf


def _calibration(case: Case, hits: Sequence[Hit]) -> Finding:
    worst = max(hits, key=lambda hit: hit.size)
    window = worst.window
    if case.task == "binary":
        said = (
            f"{in_(window)} the model expected {percent(window.predicted)} of {case.word('unit_plural')} to be "
            f"{case.word('positive_word')} and {percent(window.rate)} were"
        )
        if math.isfinite(case.expected.rate):
            said += f", against {percent(case.expected.rate)} in training"
    else:
        said = f"{in_(window)} the model expected {window.predicted:.4g} on average and it was {window.rate:.4g}"
    ranked = window.metrics.get(case.expected.metric)
    test = case.expected.metrics.get(case.expected.metric)
    if case.task == "binary" and case.expected.metric == "roc_auc" and ranked and test:
        said += f"; it still tells them apart (AUC {span(ranked)} against {test.value:.2f} in test)"
    said += "." + others(case, hits, worst)
    return Finding(
        code="watch/calibration",
        severity="warning",
        place=f"{case.model}/calibration",
        said=said,
        hint="Decisions made by a threshold, and sums of probabilities, are off by as much. Recalibrate or retrain on "
        "data that includes these weeks; ranking by score may still be used.",
        numbers=_outcome_numbers(window, len(hits)),
    )


def _shifted(case: Case) -> list[Hit]:
    """Find windows whose mean label is unlike training: beyond noise, by enough, and beyond all windows of training."""
    reference = case.expected.rate
    if not math.isfinite(reference) or case.task != "binary":
        return []
    windows = [window for window in _judged(case) if math.isfinite(window.rate)]
    rows = case.expected.rate_rows or 10**9
    chances = [noise.shares_differ(w.rate * w.labelled, w.labelled, reference, rows) for w in windows]
    least = max(RATE_LEAST, RATE_RATIO * reference)
    return [
        Hit(window, abs(window.rate - reference), {})
        for window, held in zip(windows, noise.holm(chances), strict=True)
        if held
        and abs(window.rate - reference) >= least
        and not (case.usual is not None and case.usual.holds_rate(window.rate, 3 * _mean_error(case, window)))
    ]


def _label_rate(case: Case, hits: Sequence[Hit]) -> Finding:
    worst = max(hits, key=lambda hit: hit.size)
    window = worst.window
    said = f"{in_(window)} {_rate_words(case, window, '')}"
    if case.usual is not None and case.usual.rates:
        low, high = min(case.usual.rates), max(case.usual.rates)
        said += f", where single {unit(case.width_s)}s ranged from {percent(low)} to {percent(high)}"
    if math.isfinite(window.predicted):
        said += f"; the model saw it coming and expected {percent(window.predicted)}"
    return Finding(
        code="watch/label-rate",
        severity="info" if math.isfinite(window.predicted) else "warning",
        place=f"{case.model}/label-rate",
        said=said + "." + others(case, hits, worst),
        hint="The world changed, or the way labels are made did. Check the label's source first; if it is right, "
        "retrain on data that includes this time.",
        numbers=_outcome_numbers(window, len(hits)),
    )


def _rate_words(case: Case, window: Window, lead: str) -> str:
    """Say the share of positives against training, where both are known."""
    if case.task != "binary" or not math.isfinite(window.rate) or not math.isfinite(case.expected.rate):
        return ""
    return (
        f"{lead}{percent(window.rate)} of {case.word('unit_plural')} were {case.word('positive_word')} "
        f"against {percent(case.expected.rate)} in training"
    )


def _outcome_numbers(window: Window, windows: int) -> dict[str, float]:
    found = {
        "start_s": window.start,
        "windows": windows,
        "labelled": window.labelled,
        "rate": window.rate,
        "predicted": window.predicted,
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def labels_late(case: Case) -> list[Finding]:
    """Judge whether labels that should be there by now are missing."""
    old = [w for w in case.recent if not w.open and not w.maturing and w.distinct >= case.config.min_rows]
    usual = case.usual_labelled
    if case.without:
        said = (
            f"Outcomes are known by {', '.join(name.removeprefix('key_') for name in case.without)}, which the "
            f"observations do not carry, so no outcome finds its {case.word('unit_singular')}."
        )
        numbers: dict[str, float] = {"columns": len(case.without)}
    elif not math.isfinite(usual):  # nothing was ever labelled
        rows = sum(window.distinct for window in case.windows if not window.open)
        if rows < case.config.min_rows:
            return []
        said = (
            f"No label has come for any of the {rows:,} {case.word('unit_plural')} since {first_day(case)}, so nobody "
            f"can say how good the model is in use."
        )
        numbers = {"rows": rows}
    else:
        late = [w for w in old if w.labelled_share < LABELS_RATIO * usual]
        if not late:
            return []
        worst = min(late, key=lambda window: window.labelled_share)
        said = (
            f"Of {worst.distinct:,} {case.word('unit_plural')} in {named(worst.start, worst.end)} only "
            f"{percent(worst.labelled_share)} have their label, where {percent(usual)} is usual by now."
        )
        numbers = {
            "start_s": worst.start,
            "labelled_share": worst.labelled_share,
            "usual_share": usual,
            "windows": len(late),
        }
    return [
        Finding(
            code="watch/labels-late",
            severity="warning",
            place=f"{case.model}/labels",
            said=said,
            hint="Send labels with `tenon labels` or POST /labels, or facts of the model's source to POST /facts; "
            "check that their ids, or key and time, are those of the requests.",
            numbers=numbers,
        )
    ]
