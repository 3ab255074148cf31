"""What the labels say: performance, calibration, the rate of the label, and labels that do not come.

Judged on closed windows whose labels have come. More positives than in training, probabilities that are too low and a
worse ranking are three views of one thing when they fall in the same windows: the gravest is told, with the figures of
the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tenon import metric
from tenon.finding import Finding
from tenon.metric import Estimate
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


def _worse(case: Case) -> list[Hit]:
    """Find windows where the metric is worse than on test: beyond noise over all windows, and by enough to matter."""
    name, reference = case.expected.metric, case.expected.metrics.get(case.expected.metric)
    windows = [window for window in _judged(case) if name in window.metrics]
    if reference is None or not windows:
        return []
    sign = 1.0 if metric.HIGHER_IS_BETTER[name] else -1.0
    losses = [sign * (reference.value - window.metrics[name].value) for window in windows]
    error = noise.standard_error(reference.low, reference.high)
    chances = [
        noise.two_sided(loss, error, noise.standard_error(window.metrics[name].low, window.metrics[name].high))
        for loss, window in zip(losses, windows, strict=True)
    ]
    least = _worth(case.expected, name, reference)
    return [
        Hit(window, loss, {})
        for window, loss, held in zip(windows, losses, noise.holm(chances), strict=True)
        if held and loss >= least
    ]


def _worth(expected: Expected, name: str, reference: Estimate) -> float:
    """Return how large a loss must be to be worth telling."""
    if math.isfinite(expected.baseline_value):
        return max(WORTH_RATIO * abs(reference.value - expected.baseline_value), 1e-9)
    bounded = name in ("roc_auc", "average_precision", "r2")
    return WORTH_SCORE if bounded else WORTH_ERROR * abs(reference.value)


def _performance(case: Case, hits: Sequence[Hit]) -> Finding:
    name = case.expected.metric
    reference = case.expected.metrics[name]
    worst = max(hits, key=lambda hit: hit.size)
    value = worst.window.metrics[name]
    called, meaning = WORDS[name]
    meaning = meaning.format(unit_plural=case.word("unit_plural"), positive_word=case.word("positive_word"))
    sign = 1.0 if metric.HIGHER_IS_BETTER[name] else -1.0
    beaten = math.isfinite(case.expected.baseline_value) and sign * (value.value - case.expected.baseline_value) <= 0
    said = (
        f"{in_(worst.window)} the model {meaning} in the test that promoted it: {called} {span(value)} "
        f"against {reference.value:.2f}{_rate_words(case, worst.window, '; ')}."
    )
    if beaten:
        said += (
            f" That is no better than the baseline '{case.expected.baseline}' was in the test "
            f"({case.expected.baseline_value:.2f})."
        )
    said += others(case, hits, worst)
    numbers = _outcome_numbers(worst.window, len(hits)) | {
        name: value.value,
        f"{name}_low": value.low,
        f"{name}_high": value.high,
        f"{name}_test": reference.value,
    }
    return Finding(
        code="watch/performance",
        severity="error" if beaten else "warning",
        place=f"{case.model}/performance/{name}",
        said=said,
        hint="See which features drifted in the same time, then consider retraining on newer data (tenon run); "
        "`tenon models rollback` if an earlier version did better.",
        numbers=numbers,
    )


def _biased(case: Case) -> list[Hit]:
    """Find windows where predictions were off on average, more than in test and beyond noise."""
    windows = [w for w in _judged(case) if math.isfinite(w.rate) and math.isfinite(w.predicted)]
    offset = case.expected.bias if math.isfinite(case.expected.bias) else 0.0
    gaps = [window.predicted - window.rate - offset for window in windows]
    chances = [noise.two_sided(gap, _mean_error(case, window)) for gap, window in zip(gaps, windows, strict=True)]
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
        and not (case.usual is not None and case.usual.holds_rate(window.rate))
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
    if not math.isfinite(usual):  # nothing was ever labelled
        rows = sum(window.distinct for window in case.windows if not window.open)
        if rows < case.config.min_rows:
            return []
        said = (
            f"No label has come for any of the {rows:,} {case.word('unit_plural')} since {first_day(case)}, so nobody "
            f"can say how good the model is in use."
        )
        numbers: dict[str, float] = {"rows": rows}
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
