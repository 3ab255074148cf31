"""Every bound in tenon, with a name and a default, in one place; and the three answers of admission.

Anything that can grow (a queue, a body, a cache, a retry) has its bound here and is released in a `finally`. A caller
who asks for room is told OK, LATER (try again: the reason may pass) or NEVER (it will not fit however long you wait),
so that it can wait, or refuse honestly. Values are overridden through tenon.toml (`config.py`), never edited in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

KIB = 1024
MIB = 1024 * KIB


class Answer(StrEnum):
    """What admission says: OK now, LATER perhaps, or NEVER."""

    OK = "ok"
    LATER = "later"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """An admission answer with the reason in words and, for LATER, when to ask again."""

    answer: Answer
    reason: str = ""
    retry_after_s: float = 0.0

    def __bool__(self) -> bool:
        return self.answer is Answer.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """Bounds of reading raw files."""

    memory_bytes: int = 512 * MIB  # what one ingest may hold, whatever the size of the file
    chunk_bytes: int = 8 * MIB  # bytes read and split at once
    row_bytes: int = 4 * MIB  # a longer row is quarantined
    columns: int = 10_000  # a wider file is refused
    sample_bytes: int = 1 * MIB  # what is read to find the dialect
    examples_per_finding: int = 5  # examples kept with a finding
    decompressed_ratio: int = 1_000  # a zip that grows more than this is a bomb


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackLimits:
    """Bounds of metric logging."""

    buffered_points: int = 2_000_000  # points waiting to be written; more are dropped and counted
    flush_s: float = 0.7  # points reach the disk at least this often
    metric_names: int = 10_000  # different names in one run
    code_bytes: int = MIB  # source files kept with a run, at most; 0 keeps none
    search_s: float = 20.0  # the longest that a search over runs may take


@dataclass(frozen=True, slots=True, kw_only=True)
class FitLimits:
    """Bounds of predicting whether a training step fits a GPU."""

    step_s: float = 600.0  # the longest one run of the step on fake tensors may take


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLimits:
    """Bounds of one serving process."""

    body_bytes: int = 4 * MIB  # a larger body gets 413
    rows_per_request: int = 10_000  # more rows get 413
    queue_rows: int = 20_000  # rows waiting to be scored; more get 503 with Retry-After
    batch_rows: int = 256  # rows scored together
    request_s: float = 10.0  # a request older than this gets 503
    header_bytes: int = 32 * KIB  # larger headers get 431
    connections: int = 2_048  # open connections, and gRPC calls at once; more get 503
    streams: int = 256  # gRPC calls at once on one connection; more wait
    idle_s: float = 60.0  # a connection kept alive without a request is closed after this
    drain_s: float = 15.0  # the longest a stopping service waits for its requests
    json_depth: int = 32  # deeper nesting gets 400
    state_bytes: int = 256 * MIB  # states of sessions of one stateful model; the least recently used leave


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteLimits:
    """Bounds of routing to replicas, and of simulating it."""

    blocks: int = 1_000_000  # cached blocks remembered over all replicas
    prompt_blocks: int = 4_096  # blocks of one request that are looked at
    waiting: int = 1_024  # requests one replica may hold that have not begun to answer; more are told LATER
    sessions: int = 100_000  # sessions whose replica is remembered
    connections: int = 512  # open connections to one replica
    idle_connections: int = 64  # kept open to one replica without a request
    connect_s: float = 2.0  # the longest a connection to a replica may take
    first_s: float = 120.0  # the first answer must come within this, tries elsewhere included
    silent_s: float = 120.0  # an answer that has begun and says nothing for this long is broken off
    hold_s: float = 5.0  # how long a request waits when no replica is up, before 503
    cold_s: float = 120.0  # how long at most when a fleet is starting one
    held: int = 1_000  # requests that wait so at once; more get 503
    held_bytes: int = 64 * MIB  # their bodies together
    session_bytes: int = 256 * MIB  # requests and copies of states kept for sessions, so that a dead replica loses none
    session_waiting: int = 32  # requests of one session with state that wait for each other; more get 429
    probe_s: float = 1.0  # how often a replica is asked whether it is ready
    whole_bytes: int = 256 * KIB  # a shorter answer is passed on when it is whole, so that it can still be retried
    keys: int = 10_000  # callers whose rate and money are counted
    trace_requests: int = 5_000_000  # requests of a trace that is replayed
    trace_line_bytes: int = 16 * MIB  # a longer line of a trace is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageLimits:
    """Bounds of serving one language model."""

    requests: int = 256  # texts being generated or waiting; more get 429
    batch: int = 32  # texts generated together
    step_rows: int = 64  # tokens computed in one step, of prompts and of what is generated
    cache_bytes: int = 256 * MIB  # keys and values, in use and kept for the next prompt
    new_tokens: int = 4_096  # tokens of one answer, where the context has room for them
    choices: int = 8  # answers to one prompt (`n`)
    inputs: int = 64  # prompts, or texts to embed, in one request
    stops: int = 4  # stop strings
    stop_characters: int = 64  # of one stop string
    wait_s: float = 30.0  # the longest a text waits for its beginning; then 503


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds of the store."""

    busy_s: float = 30.0  # the longest a writer waits for another
    free_bytes: int = 64 * MIB  # refuse to write when less than this would be left
    batch_bytes: int = 32 * MIB  # the largest batch of a stream
    cache_bytes: int = 10 * 1024 * MIB  # blobs fetched from an object store


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Bounds of work spread over processes or machines."""

    retries: int = 2  # how often a job is tried again after its worker died
    ahead: int = 4  # jobs per worker begun before the oldest result is taken
    message_bytes: int = 256 * MIB  # one job or one result


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """Bounds of collecting observations and of examining them."""

    buffer_rows: int = 100_000  # not yet durable; more are dropped and counted
    flush_s: float = 1.0  # observations reach the disk at least this often
    retry_s: float = 30.0  # the longest wait between two tries of a store that fails
    close_s: float = 15.0  # the longest a closing collector waits for the store
    windows: int = 520  # windows looked at in one examination
    chunk_rows: int = 200_000  # rows held at once while a profile is built
    scored_rows: int = 200_000  # rows of one window that performance is computed on; more are sampled
    samples: int = 200  # bootstrap samples of one window's performance


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All bounds together, as found in the configuration."""

    ingest: IngestLimits = IngestLimits()
    track: TrackLimits = TrackLimits()
    fit: FitLimits = FitLimits()
    serving: ServingLimits = ServingLimits()
    route: RouteLimits = RouteLimits()
    language: LanguageLimits = LanguageLimits()
    store: StoreLimits = StoreLimits()
    engine: EngineLimits = EngineLimits()
    watch: WatchLimits = WatchLimits()
