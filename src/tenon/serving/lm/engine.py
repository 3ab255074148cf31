"""Engine runs many texts at once on one network: a step computes one row of each that is being generated, and fills up
with rows of prompts that are still being read.

One thread owns the network, the pages and the texts; others hand it requests and cancellations through an inbox and
get pieces of text back on their own event loop. A text that ends, or whose reader has gone, leaves between two
steps and its room is taken by the next (continuous batching, Yu et al., OSDI 2022). When pages run out, the text that
came last gives its pages back and is computed again later; the bits it computes are the same (`network`), so nobody
notices. Before a page of a prompt is computed its name is looked up: another text may have it already, or have computed
it a moment ago.

Everything is bounded: pages, texts at once, rows of a step, requests in all, and what a slow reader has not fetched is
at most its own answer. A step that fails ends the texts in it with an error, and the engine goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tenon.errors import ConfigError, sentence
from tenon.limits import LanguageLimits
from tenon.serving.lm.bundle import Bundle
from tenon.serving.lm.cache import PAGE, Pages, named
from tenon.serving.lm.gauge import Gauge
from tenon.serving.lm.network import ROWS, Network, Part, check_room
from tenon.serving.lm.sample import Choice, Until, choose
from tenon.serving.lm.tokenizer import Reader

log = logging.getLogger("tenon.serving.lm")

End = Literal["", "stop", "length", "cancelled", "late", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One text to continue, or (with `embed`) to be told the mean of its last hidden states."""

    prompt: Sequence[int]
    new_tokens: int = 1
    choice: Choice = field(default_factory=Choice)
    stops: Sequence[str] = ()
    embed: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added: text, how many tokens in all so far, how many of the prompt were cached, and the end."""

    text: str
    tokens: int
    cached: int
    end: End = ""


class Answer:
    """The answer to one Ask, as it comes; awaited on the event loop that asked. Use it as an async iterator."""

    __slots__ = ("_engine", "_loop", "_pieces", "_ready", "_text", "ask", "vector")

    def __init__(self, engine: Engine, ask: Ask) -> None:
        self.ask = ask
        self.vector: NDArray[np.float64] | None = None
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._pieces: list[Piece] = []
        self._text: _Text | None = None

    def take(self, piece: Piece) -> None:
        """Be given a piece; on the loop's own thread. Pieces not fetched yet become one."""
        if self._pieces:
            before = self._pieces.pop()
            piece = Piece(before.text + piece.text, piece.tokens, piece.cached, piece.end)
        self._pieces.append(piece)
        self._ready.set()

    async def next(self) -> Piece:
        """Return everything that has come since the last call; waits when that is nothing."""
        await self._ready.wait()
        self._ready.clear()
        return self._pieces.pop()

    def cancel(self) -> None:
        """Stop generating; a piece that says so comes as the last one. May be called at any time, from any thread."""
        if self._text is not None:
            self._engine.cancel(self._text)

    @property
    def tokens(self) -> Sequence[int]:
        """Return the tokens generated; to be read after the end."""
        assert self._text is not None
        return self._text.tokens[len(self.ask.prompt) :]


class _Text:
    """A text as the engine's thread has it."""

    __slots__ = (
        "answer",
        "arrived",
        "began",
        "cached",
        "cancelled",
        "chance",
        "done",
        "first_at",
        "hidden",
        "last_at",
        "names",
        "number",
        "pages",
        "reader",
        "tokens",
        "until",
    )  # fmt: skip

    def __init__(self, answer: Answer, number: int, arrived: float, reader: Reader) -> None:
        ask = answer.ask
        self.answer = answer
        self.number = number
        self.arrived = arrived
        self.began = self.first_at = self.last_at = 0.0
        self.tokens = list(ask.prompt)
        self.done = 0  # tokens whose keys and values are in the pages
        self.cached = 0  # tokens of the prompt that were in the cache when it was read
        self.cancelled = False
        self.pages: list[int] = []
        self.names: list[bytes] = []
        self.chance = np.random.default_rng(ask.choice.seed)
        self.reader = reader
        self.until = Until(ask.stops)
        self.hidden: NDArray[np.float64] | None = None

    @property
    def made(self) -> int:
        """Return how many tokens were generated."""
        return len(self.tokens) - len(self.answer.ask.prompt)


class Engine:
    """One network and the texts it works on; `start` loads the weights and begins, `close` ends what is left."""

    def __init__(self, bundle: Bundle, limits: LanguageLimits, gauge: Gauge, *, device: str = "cpu") -> None:
        self.bundle = bundle
        self.limits = limits
        self.gauge = gauge
        self.device = device
        count = limits.cache_bytes // bundle.shape.page_bytes(PAGE)
        check_room(bundle.shape, count, bundle.name)
        for name, least in (("requests", 1), ("batch", 1), ("step_rows", ROWS)):
            if getattr(limits, name) < least:
                got = str(getattr(limits, name))
                raise ConfigError(sentence(f"at least {least}", got, at=f"limits.language.{name}"))
        most = max(limits.requests, 2) * -(-bundle.shape.context // PAGE)  # two: what the proof needs
        self.pages = Pages(min(max(count, 2), most))
        self.exact = False
        self._root = bundle.version.encode()
        self._network: Network | None = None
        self._lock = threading.Condition()
        self._inbox: deque[_Text] = deque()
        self._gone: list[_Text] = []
        self._waiting: deque[_Text] = deque()
        self._running: list[_Text] = []
        self._open = False
        self._count = 0
        self._outbox: list[tuple[_Text, Piece]] = []
        self._thread: threading.Thread | None = None

    # ── for everybody ────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Load the weights, prove the arithmetic and begin to work; takes a second or so, and is for no event loop."""
        if self._thread is not None:
            return
        limits = self.limits
        self._network = Network(self.bundle, self.pages.count, limits.step_rows, device=self.device)
        self.exact = self._network.exact
        if not self.exact:
            log.warning("'%s': sums on %s depend on the batch; answers may too", self.bundle.name, self.device)
        self._open = True
        self._thread = threading.Thread(target=self._work, name=f"tenon-lm-{self.bundle.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every text that is left and let the thread go."""
        with self._lock:
            self._open = False
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def load(self) -> int:
        """Return how many texts are waited for."""
        return len(self._inbox) + len(self._waiting) + len(self._running)

    @property
    def running(self) -> int:
        """Return how many texts are worked on now."""
        return len(self._running)

    def cached(self, tokens: Sequence[int]) -> int:
        """Return how many tokens of this beginning are in the cache now; for a router that asks where to go."""
        before, held = self._root, 0
        for end in range(PAGE, len(tokens), PAGE):
            before = named(before, tokens[end - PAGE : end])
            if not self.pages.holds(before):
                break
            held = end
        return held

    def submit(self, ask: Ask) -> Answer:
        """Begin to answer; on an event loop, which gets the pieces. The caller has checked limits and admission."""
        assert len(ask.prompt) > 0 and len(ask.prompt) + (not ask.embed) <= self.bundle.shape.context, len(ask.prompt)
        answer = Answer(self, ask)
        with self._lock:
            self._count += 1
            text = _Text(answer, self._count, perf_counter(), self.bundle.tokenizer.reader())
            answer._text = text
            if self._open:
                self._inbox.append(text)
                self._lock.notify()
                return answer
        answer.take(Piece("", 0, 0, "failed"))
        return answer

    def cancel(self, text: _Text) -> None:
        """Take a text out, wherever it is; it ends before the next step."""
        with self._lock:
            if self._open:
                self._gone.append(text)
                self._lock.notify()

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while self._take_in():
            try:
                self._admit()
                self._step()
            except Exception:  # the edge of the worker: texts of this step fail, the next ones are served
                log.exception("a step of '%s' failed", self.bundle.name)
                self.gauge.failures += 1
                for text in tuple(self._running):
                    self._finish(text, "failed")
            self._deliver()
        for text in (*self._running, *self._waiting, *self._inbox):
            self._finish(text, "failed")
        self._deliver()

    def _take_in(self) -> bool:
        """Fetch what others left, waiting when there is nothing to do; False when the engine closes."""
        with self._lock:
            while self._open and not (self._inbox or self._gone or self._waiting or self._running):
                self._lock.wait()
            if not self._open:
                return False
            gone, self._gone = self._gone, []
            while self._inbox:
                self._waiting.append(self._inbox.popleft())
        for text in gone:
            if text in self._running or text in self._waiting:
                self._finish(text, "cancelled")
        return True

    def _admit(self) -> None:
        """Begin waiting texts, first come first served, while there is room for another and for its prompt."""
        oldest = perf_counter() - self.limits.wait_s
        for text in tuple(self._waiting):
            if not text.began and text.arrived < oldest:
                self._finish(text, "late")
        while self._waiting and len(self._running) < self.limits.batch:
            text = self._waiting[0]
            # Half a prompt that soon has to give way helps nobody; what is shared needs no room of its own.
            if self._running and -(-len(text.tokens) // PAGE) > self.pages.available:
                return
            self._waiting.popleft()
            self._running.append(text)
            if not text.began:
                text.began = perf_counter()
                self.gauge.queue.observe(text.began - text.arrived)

    def _step(self) -> None:
        """Compute one row of every text that is generated and rows of prompts as far as there is room; then choose."""
        assert self._network is not None
        room = self.limits.step_rows
        chosen: list[tuple[_Text, int]] = []  # with how many rows
        # Those being generated come first, one row each; then prompts, in the order they came.
        for text in sorted(self._running, key=lambda text: (len(text.tokens) - text.done > 1, text.number)):
            if room <= 0:
                break
            if text not in self._running:
                continue  # it gave way to one before it
            self._share(text)
            rows = self._room(text, min(room, len(text.tokens) - text.done), [other for other, _ in chosen])
            if rows:
                chosen.append((text, rows))
                room -= rows
        if not chosen:
            return
        parts, wanted, row = [], [], 0
        for text, rows in chosen:
            parts.append(Part(tokens=text.tokens[text.done : text.done + rows], start=text.done, pages=text.pages))
            row += rows
            if text.done + rows == len(text.tokens) and not text.answer.ask.embed:
                wanted.append(row - 1)
        began = perf_counter()
        logits, hidden = self._network.step(parts, wanted)
        now = perf_counter()
        self.gauge.stepped(len(chosen), row, now - began)
        at = row = 0
        for text, rows in chosen:
            text.done += rows
            self._name(text)
            if text.answer.ask.embed:
                self._embed(text, hidden[row : row + rows])
            elif text.done == len(text.tokens):
                self._choose(text, logits[at], now)
                at += 1
            row += rows

    def _share(self, text: _Text) -> None:
        """Take pages that are in the cache: of the beginning, or computed by another text just now."""
        while not text.answer.ask.embed and text.done % PAGE == 0 and text.done // PAGE == len(text.pages):
            end = text.done + PAGE
            if end >= len(text.tokens):  # the last token is always computed: its logits are wanted
                return
            name = named(text.names[-1] if text.names else self._root, text.tokens[text.done : end])
            page = self.pages.share(name)
            if page is None:
                return
            text.pages.append(page)
            text.names.append(name)
            text.done = end
            if not text.made:
                text.cached += PAGE

    def _room(self, text: _Text, rows: int, chosen: Sequence[_Text]) -> int:
        """Get the pages that the next rows need; others that came later give way. Returns how many rows have room."""
        while len(text.pages) * PAGE < text.done + rows:
            page = self.pages.take()
            if page is not None:
                text.pages.append(page)
                continue
            later = [other for other in self._running if other.number > text.number and other not in chosen]
            if not later:
                return max(0, len(text.pages) * PAGE - text.done)
            self._give_way(max(later, key=lambda other: other.number))
        return rows

    def _give_way(self, text: _Text) -> None:
        """Take a text's pages; it is begun again, from its tokens so far, when there is room."""
        self.gauge.gave_way += 1
        self._running.remove(text)
        self._release(text)
        self._waiting.appendleft(text)
        if not text.made:
            text.cached = 0

    def _release(self, text: _Text) -> None:
        self.pages.release(reversed(text.pages))
        text.pages, text.names, text.done = [], [], 0
        text.hidden = None

    def _name(self, text: _Text) -> None:
        """Name the pages that have become full, so that others can share them."""
        if text.answer.ask.embed:
            return
        while (len(text.names) + 1) * PAGE <= text.done:
            at = len(text.names)
            name = named(text.names[-1] if at else self._root, text.tokens[at * PAGE : (at + 1) * PAGE])
            text.names.append(name)
            self.pages.keep(text.pages[at], name)

    # ── what comes of a step ─────────────────────────────────────────────────────────────────────────────────────────

    def _choose(self, text: _Text, logits: NDArray[np.float32], now: float) -> None:
        """Choose a text's next token and pass on what it adds."""
        ask = text.answer.ask
        if not text.first_at:
            text.first_at = now
            self.gauge.first.observe(now - text.arrived)
            self.gauge.prompt_tokens += len(ask.prompt)
            self.gauge.cached_tokens += text.cached
        else:
            self.gauge.between.observe(now - text.last_at)
        text.last_at = now
        token = choose(logits[: len(self.bundle.tokenizer.tokens)], ask.choice, text.chance)
        text.tokens.append(token)
        self.gauge.new_tokens += 1
        if token in self.bundle.shape.ends:
            self._finish(text, "stop", text.until.read(text.reader.end()) + text.until.end())
            return
        passed = text.until.read(text.reader.read(token))
        if text.until.found:
            self._finish(text, "stop", passed)
        elif text.made >= ask.new_tokens or len(text.tokens) >= self.bundle.shape.context:
            passed += text.until.read(text.reader.end())
            self._finish(text, "stop" if text.until.found else "length", passed + text.until.end())
        else:
            self._outbox.append((text, Piece(passed, text.made, text.cached)))

    def _embed(self, text: _Text, hidden: NDArray[np.float32]) -> None:
        """Add hidden states row by row, in float64: the sum is the same however the prompt was cut into steps."""
        total = np.zeros(hidden.shape[1]) if text.hidden is None else text.hidden
        for row in hidden:
            total = total + row
        text.hidden = total
        if text.done == len(text.tokens):
            self.gauge.prompt_tokens += text.done
            norm = float(np.linalg.norm(total))
            text.answer.vector = total / norm if norm else total
            self._finish(text, "stop")

    def _finish(self, text: _Text, end: End, passed: str = "") -> None:
        """Take a text out and say how it ended."""
        if text in self._running:
            self._running.remove(text)
        with contextlib.suppress(ValueError):
            self._waiting.remove(text)
        self._release(text)
        self.gauge.ended(end)
        self._outbox.append((text, Piece(passed, text.made, text.cached, end)))

    def _deliver(self) -> None:
        """Hand the pieces of a step to the event loops that wait for them, one call for each loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[_Text, Piece]]] = {}
        for text, piece in self._outbox:
            loops.setdefault(text.answer._loop, []).append((text, piece))
        self._outbox = []
        for loop, pieces in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody reads any more
                loop.call_soon_threadsafe(_hand_out, pieces)

    def numbers(self) -> Mapping[str, Any]:
        """Return how the engine stands now."""
        return {
            "running": len(self._running),
            "waiting": len(self._inbox) + len(self._waiting),
            "pages": self.pages.count,
            "pages_available": self.pages.available,
            "pages_kept": self.pages.kept,
            "evicted": self.pages.evicted,
        }


def _hand_out(pieces: Sequence[tuple[_Text, Piece]]) -> None:
    for text, piece in pieces:
        text.answer.take(piece)
