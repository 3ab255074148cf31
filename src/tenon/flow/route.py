"""The gateway as a command runs it: replicas at URLs, a fleet of its own, or both; what it learns beside the project.

Beside the state file lie the fleet's lock (`.fleet`), how long starts took (`.starts`), the token that session doors
open for (`.token`, readable by its owner alone) and what replicas print (`replicas/`). What is done to the fleet is
an event `scaling` in the store, where the folder has one.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenon import config as configuration
from tenon import serving
from tenon.config import Config, ScaleConfig
from tenon.errors import StoreError, UsageError, sentence
from tenon.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What a gateway stands in front of, and how it chooses; empty values mean those of tenon.toml."""

    replicas: Sequence[str] = ()
    fleet: str = ""
    least: int | None = None
    most: int | None = None
    host: str = ""
    port: int = 0
    routing: serving.Routing
    state: Path = Path(".tenon/route.state")


def serve(asked: Front, environ: Mapping[str, str], say: Callable[[str], None]) -> dict[str, Any]:
    """Be one address in front of replicas until SIGTERM or Ctrl-C; returns the counts of the whole time."""
    config = configuration.load(Path(), environ)
    scale = replace(
        config.scale,
        fleet=asked.fleet or config.scale.fleet,
        least=config.scale.least if asked.least is None else asked.least,
        most=config.scale.most if asked.most is None else asked.most,
    )
    if not (asked.replicas or scale.fleet):
        hint = "such as --replica http://10.0.0.7:8000, or --fleet 'tenon serve . --port {port}'"
        raise UsageError(sentence("--replica or --fleet", "neither", hint=hint))
    if not 0 <= scale.least <= scale.most or scale.most < 1:
        raise UsageError(sentence("0 <= least <= most, and most above 0", f"{scale.least} and {scale.most}"))
    with ExitStack() as stack:
        record = _recorder(stack, config)
        limits = config.limits
        serve_config = config.serve
        scaler = None
        if scale.fleet:
            serve_config = replace(serve_config, fleet_token=serve_config.fleet_token or _token(asked.state))
            fleet = serving.LocalFleet(
                scale.fleet, start_s=scale.start_s, drain_s=scale.drain_s, state=asked.state.with_suffix(".fleet"),
                orphan_s=scale.orphan_s, token=serve_config.fleet_token,
            )  # fmt: skip
            stack.callback(fleet.release)
            fleet.adopt()  # what a killed gateway left
            scaler = autoscaler(scale, fleet, asked.state, record)
        gateway = serving.Gateway(
            serving.connect(asked.replicas, limits), routing=asked.routing, serve=serve_config, limits=limits,
            state=asked.state, scaler=scaler,
        )  # fmt: skip

        def started(url: str) -> None:
            parts = [f"{len(asked.replicas)} replicas"] if asked.replicas else []
            if scaler is not None:
                parts.append(f"a fleet of {scale.least} to {scale.most}")
            say(f"{' and '.join(parts)} behind {url}")

        serving.run(gateway, asked.host, asked.port or None, started=started)
        return gateway.tally.summary()


def autoscaler(
    scale: ScaleConfig, fleet: serving.LocalFleet, state: Path, record: Callable[[str, str, Mapping[str, Any]], None]
) -> serving.Autoscaler:
    """Return what keeps a fleet of local processes as large as tenon.toml says it should be."""
    scaling = serving.Scaling(
        least=scale.least, most=scale.most, busy=scale.busy, memory=scale.memory, cool_s=scale.cool_s,
        idle_s=scale.idle_s,
    )  # fmt: skip
    return serving.Autoscaler(
        fleet=fleet, scaling=scaling, sample_s=scale.sample_s, drain_s=scale.drain_s,
        label=f"{scale.fleet} on {socket.gethostname()}", state=state.with_suffix(".starts"), record=record,
    )  # fmt: skip


def _recorder(stack: ExitStack, config: Config) -> Callable[[str, str, Mapping[str, Any]], None]:
    """Return what keeps events: the store of the folder, where it has one."""
    if not Path(".tenon/tenon.db").is_file() and not config.store.catalog:
        return lambda kind, subject, body: None
    store = stack.enter_context(Store.open(Path(), config.store, config.limits.store))

    def record(kind: str, subject: str, body: Mapping[str, Any]) -> None:
        store.event(kind, subject, dict(body))

    return record


def _token(state: Path) -> str:
    """Return the token of this gateway's fleet, made once: replicas that outlive a gateway go on to know it."""
    path = state.with_suffix(".token")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(16))
        except FileExistsError:
            pass
        found = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(sentence("a token of the fleet", str(error), at=str(path))) from error
    if len(found) < 32:
        hint = "delete the file, and the replicas that a killed gateway left"
        raise StoreError(sentence("a token of the fleet", f"{len(found)} characters", at=str(path), hint=hint))
    return found
