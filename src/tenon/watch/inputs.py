"""What the inputs say: features that drifted, values that went missing, categories that training never saw.

Each is one finding for all columns together. Drift is judged on closed windows, because half a week is unlike a week;
missing values and new categories also on the open one, because a broken source should not wait for Monday.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tenon.finding import Finding
from tenon.metric import wilson
from tenon.watch import noise
from tenon.watch.case import Case, Hit, others, percent, shown
from tenon.watch.window import in_, unit, unit_of

MISSING_LEAST = 0.05


def drift(case: Case) -> list[Finding]:
    """Judge every column of every recent window; all that drifted is one finding, with the score when it followed."""
    hits: dict[str, list[Hit]] = {}
    strange = {(start, name) for _, name, start, _ in _strange(case)}
    for window in case.enough:
        for name, psi in window.drift.items():
            if (window.start, name) in strange:
                continue
            limit = case.limits_psi.get((window.start, name), case.config.psi_warning)
            if math.isfinite(psi) and psi > limit:
                hits.setdefault(name, []).append(Hit(window, psi, {"limit": limit}))
    score = hits.pop("score", [])
    found = []
    if hits:
        found.append(_drifted(case, hits, score))
    elif score:
        found.append(_score_drift(case, score))
    return found


def _drifted(case: Case, hits: Mapping[str, Sequence[Hit]], score: Sequence[Hit]) -> Finding:
    """Tell of all drifted features in one finding: when, how many, the worst by name."""
    starts = sorted({hit.window.start for every in hits.values() for hit in every})
    by_window = {
        start: [(name, hit) for name, every in hits.items() for hit in every if hit.window.start == start]
        for start in starts
    }
    worst_start = max(starts, key=lambda start: (len(by_window[start]), max(hit.size for _, hit in by_window[start])))
    pairs = sorted(by_window[worst_start], key=lambda pair: -pair[1].size)
    window, names = pairs[0][1].window, [name for name, _ in pairs]
    features = len([name for name in window.drift if name != "score"])
    listed = ", ".join(f"{name} (PSI {hit.size:.2f})" for name, hit in pairs[:4])
    more = f" and {len(pairs) - 4} more" if len(pairs) > 4 else ""
    count = f"{len(pairs)} of {features} features looked" if len(pairs) != 1 else f"1 of {features} features looked"
    said = f"{in_(window)} {count} unlike the training data: {listed}{more}"
    weight = sum(case.expected.importance.get(name, 0.0) for name in names)
    if case.expected.importance:
        said += f"; the model rests on {'them' if len(names) > 1 else 'it'} for {percent(weight)} of what it uses"
    if case.usual is not None and case.usual.windows:
        said += f". No {unit(case.width_s)} of training was as far off"
    if any(hit.window.start == worst_start for hit in score):
        said += f". The scores moved with {'them' if len(names) > 1 else 'it'}"
    since = len(starts)
    said += f". Seen in {unit_of(case.width_s, since)} of the last {len(case.enough)}." if since > 1 else "."
    grave = [name for name, hit in pairs if hit.size > case.config.psi_error]
    rests = not case.expected.importance or any(
        case.expected.importance.get(name, 0.0) >= 0.5 / max(features, 1) for name in grave
    )
    numbers = {"start_s": worst_start, "windows": since, "features": len(names), "importance": weight}
    return Finding(
        code="watch/drift",
        severity="error" if grave and rests and _newest(case, hits) else "warning",
        place=f"{case.model}/drift",
        said=said,
        hint="Look at one of them first: has its source, unit or meaning changed? If the world did, watch performance "
        "as labels arrive, and retrain when it falls.",
        numbers=numbers | {f"psi_{name}": hit.size for name, hit in pairs[:10]},
    )


def _score_drift(case: Case, hits: Sequence[Hit]) -> Finding:
    worst = max(hits, key=lambda hit: hit.size)
    return Finding(
        code="watch/score-drift",
        severity="error" if worst.size > case.config.psi_error else "warning",
        place=f"{case.model}/score",
        said=f"{in_(worst.window)} scores were spread differently than at training (PSI "
        f"{worst.size:.2f}), though no single feature drifted.{others(case, hits, worst)}",
        hint="Features may have shifted together, or the served version is not the one the reference was made with: "
        "`tenon models audit` shows what served when.",
        numbers={"start_s": worst.window.start, "windows": len(hits), "psi_score": worst.size},
    )


def _newest(case: Case, hits: Mapping[str, Sequence[Hit]]) -> bool:
    """Whether the drift reaches into the newest judged window."""
    newest = case.enough[-1].start
    return any(hit.window.start == newest for every in hits.values() for hit in every)


def missing(case: Case) -> list[Finding]:
    """Judge the share of missing values by column; all columns are one finding."""
    windows = [window for window in case.recent if window.rows >= case.config.min_rows]
    looks = [(window, name) for window in windows for name in window.missing if name in case.reference_missing]
    chances = [
        noise.shares_differ(
            window.missing[name] * window.rows, window.rows, case.reference_missing[name], case.reference_rows
        )
        for window, name in looks
    ]
    hits: dict[str, list[Hit]] = {}
    for (window, name), held in zip(looks, noise.holm(chances), strict=True):
        more = window.missing[name] - case.reference_missing[name]
        usual = case.usual.highest_missing(name) if case.usual else 0.0
        if held and more >= MISSING_LEAST and window.missing[name] > usual:
            hits.setdefault(name, []).append(Hit(window, more, {}))
    if not hits:
        return []
    worst = {name: max(every, key=lambda hit: hit.size) for name, every in hits.items()}
    names = sorted(worst, key=lambda name: -worst[name].size)
    window = worst[names[0]].window
    listed = ", ".join(
        f"{name} in {percent(worst[name].window.missing[name])} of {case.word('unit_plural')} "
        f"(training: {percent(case.reference_missing[name])})"
        for name in names[:4]
    )
    also = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [
        Finding(
            code="watch/missing",
            severity="error" if worst[names[0]].size >= 0.5 else "warning",
            place=f"{case.model}/missing",
            said=f"{in_(window)} values were missing that training had: {listed}{also}.",
            hint="A feature that goes missing is most often a source that stopped or a join that no longer finds its "
            "rows: see when the source last delivered.",
            numbers={"start_s": window.start, "columns": len(names)}
            | {f"missing_{name}": worst[name].window.missing[name] for name in names[:10]},
        )
    ]


def _strange(case: Case) -> list[tuple[float, str, float, Sequence[str]]]:
    """Return (share, column, start, examples) wherever values that training never saw are more than 1 in 100 rows."""
    recent = {window.start: window for window in case.recent if window.rows >= case.config.min_rows}
    return [
        (share, name, start, values)
        for (start, name), (share, values) in case.unseen.items()
        if start in recent and wilson(share * recent[start].rows, recent[start].rows)[0] > 0.01
    ]


def unseen(case: Case) -> list[Finding]:
    """Judge categories that training never saw, where they are more than one in a hundred rows."""
    hits = _strange(case)
    if not hits:
        return []
    recent = {window.start: window for window in case.recent}
    share, name, start, values = max(hits, key=lambda hit: hit[0])
    names = sorted({hit[1] for hit in hits})
    listed = ", ".join(f"'{shown(value)}'" for value in values[:5])
    also = f" Also in {', '.join(other for other in names if other != name)}." if len(names) > 1 else ""
    return [
        Finding(
            code="watch/unseen",
            severity="warning",
            place=f"{case.model}/unseen",
            said=f"{in_(recent[start])} {percent(share)} of {case.word('unit_plural')} had a value of {name} that "
            f"training never saw, such as {listed}.{also}",
            hint="The model treats them as unknown. Retrain once there are enough of them, or mend the spelling at "
            "the source.",
            numbers={"start_s": start, "share": share, "columns": len(names)},
        )
    ]
