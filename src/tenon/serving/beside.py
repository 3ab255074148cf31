"""What stands beside the version that serves: brought in, judged and let go while requests go on.

The glue says which trial a model has now, and which version is the cheaper one; both are asked for as often as the
alias is. A version that comes in takes in the facts its snapshot has not seen while new ones wait, as one does that
takes over, and scores an example before anybody waits for it. A canary whose verdict is bad is let go at once, here,
also when the store cannot be written; what was found is handed to the glue, with the evidence, every few seconds and at
the end.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING

from tenon.errors import TenonError
from tenon.serving.candidate import Candidate
from tenon.serving.live import Live
from tenon.serving.service import Service
from tenon.serving.trial import Verdict

if TYPE_CHECKING:
    from tenon.serving.app import App

log = logging.getLogger("tenon.serving")


class Beside:
    """The trials and cheaper versions of one app."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._ended: set[str] = set()  # trials that this process has ended, whatever the store still says
        self._told: dict[str, float] = {}
        self._over: set[str] = set()
        self._number = 0

    async def follow(self, name: str, live: Live) -> None:
        """Bring in, judge or let go what stands beside one model, as the glue says now."""
        await self._follow_trial(name, live)
        await self._follow_cheaper(name, live)
        await self._follow_money(name, live)

    async def _follow_trial(self, name: str, live: Live) -> None:
        seams = self._app.seams
        if seams.trial is None or seams.load is None:
            return
        wanted = await asyncio.to_thread(seams.trial, name)
        if wanted is not None and (wanted.id in self._ended or wanted.version == live.service.version):
            wanted = None
        held = live.candidate
        if held is not None and (wanted is None or wanted.id != held.trial.id):
            await self.end(live)
            held = None
        if held is not None and wanted is not None:
            held.trial = wanted  # its share may have been changed
        elif wanted is not None and self._app.may_load(name, wanted.version):
            other = await self._bring(live, await asyncio.to_thread(seams.load, name, wanted.version))
            self._app.loaded()
            live.candidate = Candidate(wanted, live, other)
            self._app.resume()
        if live.candidate is not None:
            await self._judge(live, live.candidate)

    async def _judge(self, live: Live, held: Candidate) -> None:
        verdict = held.verdict()
        self._app.meter.trials[live.service.name] = (held.trial, held.evidence, verdict)
        if held.trial.kind == "canary" and verdict.answer == "bad":
            self._ended.add(held.trial.id)
            self._let_go(live)
            log.warning("canary %s of '%s' is rolled back: %s", held.trial.version, live.service.name, verdict.why)
            await self._tell(held, verdict, ended=True)
        elif perf_counter() - self._told.get(held.trial.id, 0.0) > self._app.settings.judged_s:
            await self._tell(held, verdict)

    async def end(self, live: Live) -> None:
        """Let a trial go, and hand over what it has seen."""
        held = live.candidate
        if held is not None:
            self._let_go(live)
            await self._tell(held, held.verdict())

    def _let_go(self, live: Live) -> None:
        held, live.candidate = live.candidate, None
        if held is not None:
            held.close()
            self._app.meter.trials.pop(live.service.name, None)

    async def _tell(self, held: Candidate, verdict: Verdict, *, ended: bool = False) -> None:
        judged = self._app.seams.judged
        if judged is None:
            return
        self._told = {held.trial.id: perf_counter()}
        body = {
            "trial": held.trial.id,
            "evidence": held.evidence.to_dict(),
            "verdict": verdict.to_dict(),
            "ended": ended,
        }
        try:
            await asyncio.to_thread(judged, held.trial.model, body)
        except TenonError:
            log.exception("the verdict on version %s could not be kept", held.trial.version)

    async def _follow_cheaper(self, name: str, live: Live) -> None:
        seams = self._app.seams
        if seams.cheaper is None or seams.load is None or live.spending is None:
            return
        wanted = await asyncio.to_thread(seams.cheaper, name)
        held = live.cheaper.service.version if live.cheaper is not None else ""
        if wanted == live.service.version:
            wanted = ""
        if wanted == held:
            return
        if not wanted:
            gone, live.cheaper = live.cheaper, None
            if gone is not None:
                gone.close()
        elif self._app.may_load(name, wanted):
            other = await self._bring(live, await asyncio.to_thread(seams.load, name, wanted))
            self._app.loaded()
            gone, live.cheaper = live.cheaper, other
            self._app.resume()
            if gone is not None:
                gone.close()

    async def _follow_money(self, name: str, live: Live) -> None:
        """Record when a model begins to be over its budget, and when that has ended."""
        if live.spending is None:
            return
        over = live.spending.degraded(live.service.usd_per_row, perf_counter())
        if over == (name in self._over):
            return
        (self._over.add if over else self._over.discard)(name)
        cheaper = live.cheaper.service.version if live.cheaper is not None else ""
        more = {"cheaper": cheaper, "degraded": live.meter.degraded, "shed": live.meter.shed}
        await asyncio.to_thread(self._app.record, "over budget" if over else "within budget", live.service, **more)

    async def _bring(self, live: Live, service: Service) -> Live:
        """Make a Live of another version that has seen every fact; `resume` must be called when it stands in place."""
        app = self._app
        self._number += 1
        other = Live(service, app.seams, app.settings, app.meter, f"{app.ids}b{self._number:x}-")
        try:
            if app.keeper is not None:
                await app.keeper.catch_up(service.online, app.seams.sources, service.facts_seq)
            await asyncio.to_thread(_warmed, other)
        except BaseException:  # the edge of bringing a version in: facts must not wait for ever
            app.resume()
            raise
        return other


def _warmed(other: Live) -> None:
    try:
        other.warm(other.service.example)
    except Exception:  # the edge of somebody's model: what it does with real requests decides
        log.exception("version %s of '%s' cannot score its example", other.service.version, other.service.name)
