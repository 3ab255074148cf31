"""A guard's step taken by several ranks as one: all go on, all stop, or all refuse the step.

Each rank looks at its own loss and gradients, then all say what they saw in one small all-reduce (`Ranks.hear`). When
one of them met what is not finite, every rank refuses the step before its optimiser moves, with the same sentence,
which names the rank and the module. Losses are averaged; the first rank holds the trend, the budget and the run, and
what it decides is told with the next step's all-reduce, so that a stop comes one step later than it would alone and
never on one rank only. Findings of other ranks are handed to the first, which keeps each kind once.

What is spent is that of all ranks, and of earlier attempts when a launcher began the run again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from tenon.errors import TrainingError, sentence
from tenon.finding import Finding
from tenon.ledger import NOTHING, Usage
from tenon.training.blame_torch import Blame
from tenon.training.exchange import WINDOW, Pace
from tenon.training.ranks import GRADIENT, HELD_OUT, LOSS, SAVE, STEP, TOLD, Heard, Ranks, Said

if TYPE_CHECKING:
    from tenon.training.guard import Guard

REFUSAL = "The guard refused this on every rank; begun again from the last checkpoint it would be refused again."
USAGE_S = 1.0  # between readings of what this rank uses


class Together:
    """What one guard knows of the other ranks; made by a Guard that is given `Ranks`."""

    __slots__ = (
        "_due",
        "_marks",
        "_mine",
        "_own",
        "_pace",
        "_read",
        "_step_s",
        "_steps",
        "news",
        "others",
        "ranks",
        "saving",
    )

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.news: list[Finding] = []  # of this rank, not yet told to the first
        self.others = ranks.before or NOTHING  # used by earlier attempts and, as of the last step, by other ranks
        self.saving = False  # the first rank says that a checkpoint is due by time
        self._due: Finding | None = None  # why the first rank wants to stop, to be told at the next step
        self._mine = NOTHING
        self._read = -math.inf
        self._steps = 0  # since what a step takes was last measured
        # When it was measured, what had been waited for others by then, and how many steps had been taken.
        self._marks = deque([(time.perf_counter(), 0.0, 0)], maxlen=WINDOW + 1)
        self._step_s = 0.0
        self._own: tuple[float, ...] = (0.0,) * ranks.size  # what a step takes each rank besides waiting for others
        self._pace = Pace()

    def resumed(self, used: Usage) -> None:
        """Count what a checkpoint says was used before it, unless the launcher knows of more."""
        if self.ranks.first and used.wall_s > (self.ranks.before or NOTHING).wall_s:
            self.ranks.before = self.others = used

    def step(self, guard: Guard, step: int, loss: float | None, norm: float | None, *, given: bool) -> bool:
        """Take the step with the other ranks; the same answer, or the same TrainingError, on all of them.

        `norm` is that of this rank's gradients, unless the loop has `given` it.
        """
        watch = guard._watch
        skipped = watch is not None and watch.skipped
        wrong = LOSS if loss is not None and not math.isfinite(loss) else 0
        if norm is not None and not math.isfinite(norm) and (not skipped or watch.health.stuck):
            wrong |= GRADIENT
        heard = self._hear(guard, STEP, step, loss, norm * norm if norm is not None else 0.0, wrong)
        if heard.wrong:
            self._refuse(guard, step, heard, "loss" if heard.in_loss else "gradient norm")
        if heard.stop:
            return self._stop(guard)
        self.saving = heard.save
        self._steps += 1
        if heard.count and watch is not None:
            watch.count(self.ranks)
        if watch is not None:
            mean = heard.square / self.ranks.size if given or not watch.sharded else heard.square
            self._look(guard, step, math.sqrt(mean) if norm is not None else None, skipped)
        if guard._follow is not None:
            guard._follow(guard._models, step)
        if guard.beat is not None:
            guard.beat(step)
        if self.ranks.first:
            self._decide(guard, step, heard.loss)
        return True

    def asked(
        self,
        guard: Guard,
        kind: int,
        step: int,
        loss: float,
        mixed: Sequence[float] = (),
    ) -> bool:
        """Take a loss told outside of steps (held-out rows, a logged loss): averaged, and judged by the first rank.

        Of `mixed` losses all ranks tell as many: each is that of all rows together.
        """
        wrong = 0 if math.isfinite(loss) else LOSS
        heard = self._hear(guard, kind, step, loss, 0.0, wrong)
        if heard.wrong:
            self._refuse(guard, step, heard, "held-out loss" if kind == HELD_OUT else "loss")
        told = self.ranks.words(list(mixed)) if kind == HELD_OUT else []
        rolls = [statistics.fmean(one) for one in zip(*told, strict=False)]
        if self.ranks.first and heard.loss is not None:
            self._try(guard, lambda: self._judge(guard, kind, step, heard.loss, rolls))
        # Whoever tells losses so may not come to another step: what the first rank decides is told at once.
        if self.ranks.hear(Said(kind=kind, step=step, stop=self._due is not None)).stop:
            return self._stop(guard, finishing=False)
        return True

    def agreed(self, step: int, kind: int = SAVE) -> None:
        """Wait until every rank has come to the same place."""
        self.ranks.hear(Said(kind=kind, step=step))

    # ── saying and hearing ───────────────────────────────────────────────────────────────────────────────────────────

    def _hear(self, guard: Guard, kind: int, step: int, loss: float | None, square: float, wrong: int) -> Heard:
        now = guard._clock()
        if now - self._read >= USAGE_S:
            self._read = now
            self._mine = guard.own_usage(now)
            self._measure(guard)
        if not self.ranks.first and guard._time is not None and now >= guard._read:
            guard._read = now + USAGE_S
            guard.tell(guard._time.look(step))
        keeper = guard.keeper
        heard = self.ranks.hear(
            Said(
                kind=kind,
                step=step,
                loss=loss,
                square=square,
                wrong=wrong,
                news=bool(self.news),
                stop=self._due is not None,
                save=self.ranks.first and keeper is not None and keeper.late(),
                count=self.ranks.first and guard._watch is not None and guard._watch.due,
                own_s=self._own[self.ranks.rank],
                cpu_s=self._mine.cpu_s,
                peak_bytes=self._mine.peak_bytes,
                gpus=self._mine.gpus,
            )
        )
        self._own = heard.own_s
        before = self.ranks.before or NOTHING
        self.others = Usage(
            wall_s=before.wall_s,
            cpu_s=before.cpu_s + heard.cpu_s - self._mine.cpu_s,
            peak_bytes=heard.peak_bytes - self._mine.peak_bytes,
            gpus=heard.gpus - self._mine.gpus,
        )
        if guard.run is not None:
            guard.run.also(self.others)
        if heard.news:
            self._news(guard)
        return heard

    def _measure(self, guard: Guard) -> None:
        """Measure what a step has taken since the last time, and how much of that was not waiting for others."""
        if not self._steps:
            return
        inside = guard._watch.exchange.waited_s(self._steps) if guard._watch is not None else 0.0
        self._marks.append((time.perf_counter(), self.ranks.waited_s + inside, self._marks[-1][2] + self._steps))
        self._steps = 0
        wall, waited, steps = (now - then for now, then in zip(self._marks[-1], self._marks[0], strict=True))
        self._step_s = wall / steps
        own = max(wall - waited, 1e-9) / steps
        self._own = tuple(own if rank == self.ranks.rank else one for rank, one in enumerate(self._own))

    def stands(self, guard: Guard, step: int, usd_per_s: float) -> dict[str, float]:
        """On the first rank: return the shares of exchanging and of waiting for the slowest rank; tells of both."""
        if self.ranks.size == 1:
            return {}
        shares, findings = self._pace.look(step, self._own, self._step_s, usd_per_s)
        for finding in findings:
            guard.tell(finding)
        return shares

    def _news(self, guard: Guard) -> None:
        """Hand the findings of all ranks to the first, which keeps each kind once."""
        told = self.ranks.words([one.to_dict() for one in self.news])
        self.news.clear()
        if not self.ranks.first:
            return
        known = {one.code for one in guard.findings}
        for rank, bodies in enumerate(told):
            for finding in map(Finding.from_dict, bodies):
                if finding.code not in known:
                    known.add(finding.code)
                    guard._say(replace(finding, said=f"Rank {rank}: {finding.said}"))

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, guard: Guard, step: int, loss: float | None) -> None:
        """On the first rank: read the budget now and then, judge the trend; a stop waits for the next step."""
        now = guard._clock()
        if now >= guard._read:
            self._try(guard, lambda: guard._affordable(step, now))
        if (
            self._due is None
            and loss is not None
            and (evidence := guard.trend.take(guard.reached(step), loss)) is not None
        ):
            self._try(guard, lambda: guard._heed(step, evidence))

    def _judge(self, guard: Guard, kind: int, step: int, loss: float | None, rolls: list[float]) -> None:
        assert loss is not None
        if kind == HELD_OUT:
            guard._heed(step, guard.trend.evaluated(step, loss, rolls))
        elif kind == TOLD:
            guard._heed(step, guard.trend.take(step, loss))

    def _try(self, guard: Guard, decide: Any) -> None:
        """Take what the guard would do alone as a decision that is still to be told."""
        try:
            decide()
        except TrainingError:
            assert guard._stopped is not None
        self._due, guard._stopped = guard._stopped or self._due, None

    def _stop(self, guard: Guard, *, finishing: bool = True) -> bool:
        """Stop on every rank for the first one's reason."""
        body = self.ranks.words(self._due.to_dict() if self._due is not None else None)[0]
        finding = Finding.from_dict(body)
        guard._stopped = finding
        if not self.ranks.first:
            guard.findings.append(finding)
        if finding.severity == "error":
            self._raise(finding)
        if not finishing or guard.keeper is None:
            return False
        guard.ending = True
        return True

    # ── what the gradients say ───────────────────────────────────────────────────────────────────────────────────────

    def _look(self, guard: Guard, step: int, norm: float | None, skipped: bool) -> None:
        if skipped:
            guard.tell(guard._watch.health.skipped(step))
            return
        for finding in guard._watch.passed(step, norm) or ():
            guard.tell(finding)

    def _refuse(self, guard: Guard, step: int, heard: Heard, name: str) -> None:
        """Refuse the step on every rank, with one sentence that says which rank met it and what produced it."""
        who = f"rank{'s' if len(heard.wrong) > 1 else ''} {', '.join(map(str, heard.wrong[:8]))}"
        said = sentence(f"a finite {name}", f"one that is not on {who} of {self.ranks.size}", at=guard._place(step))
        hint = "lower the learning rate, clip gradients, or look for a missing value in this step's rows"
        if guard._watch is not None:
            blame = guard._watch.blame(in_loss=heard.in_loss, agree=self._blame(heard.wrong))
            if blame is not None:
                said, hint = f"{said}: {blame.said}", blame.hint or hint
        said = self.ranks.words(said)[0]  # with the name of the run, which only the first rank knows
        finding = Finding(
            code="training/loss-not-finite",
            severity="error",
            place=guard._place(step),
            said=said,
            hint=hint,
            numbers={"step": float(step), "rank": float(heard.wrong[0])},
        )
        guard._stopped = finding
        guard._say(finding)
        self._raise(finding)

    def _raise(self, finding: Finding) -> NoReturn:
        """Raise what every rank raises, with word for whoever launched them that it would only happen again."""
        self.ranks.refused(finding.said)
        error = TrainingError(f"{finding.said}; {finding.hint}")
        error.add_note(REFUSAL)
        raise error

    def _blame(self, wrong: tuple[int, ...]) -> Any:
        """Return what makes one blame of those of all ranks: that of a rank that met it, before any other's."""

        def agree(found: Blame | None) -> Blame | None:
            mine = {"module": found.module, "said": found.said, "hint": found.hint} if found is not None else None
            every = self.ranks.words(mine)
            order = [*wrong, *(i for i in range(len(every)) if i not in wrong)]
            rank = next((i for i in order if every[i] is not None), None)
            if rank is None:
                return None
            body = every[rank]
            return Blame(module=body["module"], said=f"{body['said']} (rank {rank})", hint=body["hint"])

        return agree
