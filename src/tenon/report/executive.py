"""The executive's page: half a page to one page, in words, for someone who decides and does not compute.

It answers five questions in their order: may we use it, how good is it, what is it worth, what does it cost, what could
go wrong. No term of the trade stands alone: ROC AUC is said as what it is, the chance that of two cases, one of each
kind, the model ranks the right one higher (Hanley and McNeil, 1982). Every sentence that needs a fact which is not
known is replaced by one that says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenon.metric import HIGHER_IS_BETTER
from tenon.report import picture, word
from tenon.report.page import (
    Answer,
    Block,
    Line,
    Page,
    Part,
    Points,
    Row,
    Say,
    Section,
    Tile,
    Tiles,
    has,
    rows_of,
    say,
    show,
    value,
)
from tenon.report.plainly import happened, next_step, sentence_case, window_name
from tenon.report.sheet import finite, metric_name

Facts = Mapping[str, Any]

TONES = {"yes": "good", "care": "warn", "no": "bad", "unknown": "unknown"}
ANSWERS = {"yes": "Yes", "care": "Yes, with care", "no": "No", "unknown": "Not known yet"}
# How a simple rule is spoken of.
RULES = {
    "constant": "always quoting the average",
    "logistic": "a simple scorecard",
    "linear": "a straight-line rule",
}


def executive(facts: Facts) -> Page:
    """Tell the facts to someone who decides."""
    return Page(
        audience="executive",
        model=facts["model"],
        title=facts["words"]["question"],
        subtitle=subtitle(facts),
        sections=(
            Section(title="", blocks=(Row(answers(facts)),)),
            Section(title="How good it is", blocks=_good(facts)),
            Section(title="What it is worth, and what it costs", blocks=_money(facts)),
            Section(title="What could go wrong, and what is being watched", blocks=_risks(facts)),
        ),
    )


def subtitle(facts: Facts) -> Line:
    """Say which version the page is about, whether it is in use, and as of when."""
    number = facts["lineage"]["number"]
    version = f"version {number}" if number is not None else "no version yet"
    use = "in use" if facts["lineage"]["alias"] else "not in use"
    day = word.day(facts["at"])
    return say(facts, "{title}, {version}, {use}. As of {day}.", version=version, use=use, day=day)


def answers(facts: Facts) -> tuple[Block, ...]:
    """Answer both questions of the verdict in plain words."""
    verdict = facts["verdict"]
    good, safe = verdict["good"], verdict["safe"]
    return (
        Answer(
            question="Is it good enough?",
            answer=ANSWERS[good["answer"]],
            tone=TONES[good["answer"]],
            because=_good_because(facts, good),
        ),
        Answer(
            question="Is it safe to use now?",
            answer=ANSWERS[safe["answer"]],
            tone=TONES[safe["answer"]],
            because=_safe_because(facts, safe),
        ),
    )


def _good_because(facts: Facts, good: Mapping[str, Any]) -> tuple[Line, ...]:
    rule = best_rule(facts)[1]
    if good["answer"] == "yes":
        passed = say(facts, "It passed all {gate.checks:count} checks that were set before it was built.")
        beats = say(facts, "It beats {rule} by more than chance would explain.", rule=rule)
        return (passed, beats) if beyond_noise(facts) else (passed,)
    if good["answer"] == "no" and has(facts, "gate.passed"):
        text = "It passed {gate.passed:count} of {gate.checks:count} checks that were set before it was built."
        if has(facts, f"lift.{facts['metric']}") and not beyond_noise(facts):
            short = say(facts, "It does not beat {rule} by more than chance would explain.", rule=rule)
            return say(facts, text), short
        return (say(facts, text), *((sentence_case(one["said"]),) for one in good["because"][:1]))
    return tuple((sentence_case(one["said"]),) for one in good["because"][:2])


def _safe_because(facts: Facts, safe: Mapping[str, Any]) -> tuple[Line, ...]:
    """Give the gravest reasons in plain words; all of them, with their figures, are on the manager's page."""
    return tuple(happened(facts, one) for one in safe["because"][:3])


# ── quality ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _good(facts: Facts) -> tuple[Block, ...]:
    blocks: list[Block] = [Say(line, "lead") for line in quality_lines(facts)]
    if not blocks:
        blocks = [Say(("How good it is has not been measured yet.",), "lead")]
    pictures = tuple(one for one in (picture.hundred(facts), picture.quality(facts, plain=True)) if one)
    if pictures:
        blocks.append(Row(pictures))
    if not has(facts, f"live.last.{facts['metric']}"):
        asked = has(facts, "live.rows")
        why = "nobody has told it how its answers turned out" if asked else "it has not been watched at work"
        blocks.append(Say((f"How well it does in daily use is not known yet: {why}.",)))
    return tuple(blocks)


def quality_lines(facts: Facts) -> list[Line]:
    """Say how good the model is against the simple rule, without a term of the trade."""
    metric = facts["metric"]
    ours = f"test.{metric}"
    if not has(facts, ours):
        return []
    name, rule = best_rule(facts)
    theirs = f"baseline.{name}.{metric}"
    beside = bool(name) and has(facts, theirs)
    if metric == "roc_auc":
        text = "Of two {unit_plural}, one {positive_word} and one not, it ranks the {positive_word} one higher {ours} "
        text += "times in 100"
        if beside and name != "constant":
            text += "; {rule} manages {theirs}, and tossing a coin 50."
            return [say(facts, text, **_shown(facts, "of_hundred", ours=ours, theirs=theirs), rule=rule)]
        return [say(facts, text + "; tossing a coin manages 50.", ours=show(facts, ours, "of_hundred"))]
    how = {"mae": "it is off by {ours} on average", "rmse": "its typical error is {ours}"}
    text = "On {unit_plural} it had never seen " + how.get(metric, "its {measure} is {ours}")
    if beside:
        text += "; that of {rule} is {theirs}."
        values = _shown(facts, "", ours=ours, theirs=theirs)
        return [say(facts, text, **values, rule=rule, measure=metric_name(metric))]
    return [say(facts, text + ".", ours=show(facts, ours), measure=metric_name(metric))]


def _shown(facts: Facts, how: str, **keys: str) -> dict[str, Part]:
    return {name: show(facts, key, how) for name, key in keys.items()}


def best_rule(facts: Facts) -> tuple[str, str]:
    """Name the best simple rule by the deciding metric, and how it is spoken of; empty when none was measured."""
    metric = facts["metric"]
    rows = {
        row["who"]: row["value"]
        for row in rows_of(facts, "metrics")
        if not row["is_model"] and row["metric"] == metric and finite(row["value"]) is not None
    }
    if not rows:
        return "", "a simple rule"
    sign = 1 if HIGHER_IS_BETTER.get(metric, True) else -1
    # The run chose its best baseline on validation, so that the test split chose nothing.
    chosen = str(facts["baseline"])
    best = chosen if chosen in rows else max(rows, key=lambda name: (sign * rows[name], name))
    return best, RULES.get(best, f"the simple rule “{best}”")


def beyond_noise(facts: Facts) -> bool:
    """Say whether the paired difference to the best simple rule excludes nothing-gained."""
    figure = facts["figures"].get(f"lift.{facts['metric']}", {})
    return bool(figure.get("low", 0.0) > 0)


# ── money ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _money(facts: Facts) -> tuple[Block, ...]:
    worth: list[Line] = []
    if has(facts, "flagged.found", "flagged.share"):
        text = (
            "It flags {flagged.share:of_hundred} in 100 {unit_plural} and so finds {flagged.found:of_hundred} of every "
        )
        text += "100 {positive_word} ones; picking as many blindly would find {flagged.share:of_hundred}."
        worth.append(say(facts, text))
    elif has(facts, "top.caught"):
        text = (
            "Looking only at the {top.share:percent0} of {unit_plural} it calls riskiest finds {top.caught:of_hundred} "
        )
        text += "of every 100 {positive_word} ones; picking as many blindly would find {top.share:of_hundred}."
        worth.append(say(facts, text))
    if has(facts, "skill"):
        worth.append(say(facts, "Its forecasts miss by {skill:percent0} less than always quoting the average."))
    if has(facts, "value.month"):
        worth.append(
            say(
                facts,
                "At {value.alert} for each true alert, as the owner puts it, that is worth {value.month} a month.",
            )
        )
    elif worth:
        worth.append(("What one true alert is worth in money has not been declared, so no sum is given.",))
    blocks: list[Block] = [Points(tuple(worth))] if worth else [Say(("What it is worth has not been measured yet.",))]
    tiles = cost_tiles(facts, "money_words")
    if tiles:
        blocks.append(Tiles(tiles))
    return tuple(blocks)


def cost_tiles(facts: Facts, how: str = "usd") -> tuple[Tile, ...]:
    """The three sums people ask for, in words or to the digit; a month that is not known has a tile that says so."""
    if has(facts, "cost.month"):
        note = say(facts, "for {month.rows:count} predictions and one new training")
        shown = [Tile(label="a month", value=(show(facts, "cost.month", how),), note=note)]
    else:
        shown = [Tile(label="a month", value=("not known yet",), note=("it has not been watched at work",))]
    if has(facts, "cost.thousand"):
        note = say(facts, "over {cost.over:count} answered")
        shown.append(Tile(label="for 1,000 predictions", value=(show(facts, "cost.thousand", how),), note=note))
    if has(facts, "making.usd"):
        text = "of a budget of {budget.usd}" if has(facts, "budget.usd") else "from raw files to a judged model"
        shown.append(Tile(label="to build it", value=(show(facts, "making.usd", how),), note=say(facts, text)))
    return tuple(shown)


# ── risk ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _risks(facts: Facts) -> tuple[Block, ...]:
    """What could go wrong, each with what watches for it and what it sees now."""
    lines: list[Line] = []
    if has(facts, "drift.over"):
        text = (
            "The world may move away from what it learned. {drift.columns:count} inputs are compared every {window}; "
        )
        text += (
            "{drift.over:count} moved beyond chance and season." if value(facts, "drift.over") else "none has moved."
        )
        lines.append(say(facts, text, window=window_name(facts)))
    else:
        lines.append(("The world may move away from what it learned. This is not watched yet.",))
    if has(facts, "live.labelled", "live.rows"):
        text = (
            "It may get worse in use. The outcome of {live.labelled:count} of {live.rows:count} answers is known; its "
        )
        lines.append(say(facts, text + "quality is measured again as outcomes come in."))
    if has(facts, "live.errors"):
        text = "It may fail to answer. {live.errors:count} of {live.rows:count} requests failed"
        if has(facts, "live.p99_ms"):
            text += "; 99 in 100 were answered within {live.p99_ms:ms}, even in the slowest {window}"
        lines.append(say(facts, text + ".", window=window_name(facts)))
    if has(facts, "data.quarantined"):
        verb = "was" if value(facts, "data.quarantined") == 1 else "were"
        text = "Its data may be wrong. Of {data.rows:count} rows read, {data.quarantined:count} {verb} set aside as "
        lines.append(say(facts, text + "broken; {lost}.", verb=verb, lost=lost_words(facts)))
    alerts = [one for one in facts["findings"] if one["about"] == "watch" and one["severity"] in ("warning", "error")]
    owner = facts["words"]["owner"]
    if alerts:
        now = f"{word.plural(len(alerts), 'alert')} {'is' if len(alerts) == 1 else 'are'} with {owner} now."
        lines.append((f"{now} Next: {next_step(alerts[0])}",))
    else:
        lines.append((f"Alerts go to {owner}; there is none now.",))
    return (Points(tuple(lines)),)


def lost_words(facts: Facts) -> str:
    """Say whether anything of the raw data was lost."""
    if not has(facts, "data.unaccounted_bytes"):
        return "how much was lost is not known"
    return "some bytes are unaccounted for" if value(facts, "data.unaccounted_bytes") else "nothing was lost"
