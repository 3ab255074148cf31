"""tenon.toml and the environment become frozen dataclasses, once, by one function with one precedence.

Precedence, weakest first: the defaults below, `tenon.toml` in the project folder, the environment. An environment
variable is `TENON_` and the path of the key with `__` between: `TENON_PRICES__USD_PER_CORE_HOUR=0.08`,
`TENON_STORE__CATALOG=postgresql://...`. A key that does not exist, and a value of the wrong type, are errors that name
the place and the nearest allowed key. Configuration holds values; it never builds objects.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenon.errors import ConfigError, nearest, sentence
from tenon.limits import Limits

FILE = "tenon.toml"
PREFIX = "TENON_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What things cost, in US dollars. The defaults are a small cloud server's public list prices, rounded.

    A team sets its own: machines on a desk cost electricity and depreciation, not nothing.
    """

    usd_per_core_hour: float = 0.04  # one processor core for an hour
    usd_per_gb_memory_hour: float = 0.005  # one GB of memory held for an hour
    usd_per_gpu_hour: float = 2.5  # one GPU for an hour
    usd_per_gb_month: float = 0.023  # one GB kept for a month
    usd_per_kwh: float = 0.25  # one kWh; priced only where cores are free (a rented core already pays for its power)
    watts_per_core: float = 10.0  # what a busy core draws, where its energy cannot be measured
    watts_per_gpu: float = 300.0  # what a GPU in use draws, where its energy cannot be measured


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where the store lives: a folder by default; a PostgreSQL URL and an object store URL for a team."""

    catalog: str = ""  # "" = .tenon/tenon.db; or postgresql://user@host/db
    blobs: str = ""  # "" = .tenon/blobs; or s3://bucket/prefix
    s3_endpoint: str = ""  # for an object store that is not the default one
    s3_region: str = ""  # its region


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Where heavy work runs: `local` processes or a `ray` cluster."""

    kind: str = "local"  # `local` or `ray`
    workers: int = 0  # 0 = as many as the cores this process may use
    ray_address: str = ""  # the address of a running cluster; "" starts one here


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConfig:
    """One caller's key and what it may ask; 0 is no bound."""

    key: str = ""  # the secret that the caller sends as `x-api-key` or bearer token; best given by the environment
    rate_per_s: float = 0.0  # requests a second, over time
    burst: float = 0.0  # requests at once (0: those of one second)
    usd_per_hour: float = 0.0  # money, over time; an hour's worth at once
    priority: int = 1  # 0 can wait, 1 a person waits, 2 urgent


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How the service listens."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 8321  # port to listen on
    token: str = ""  # when set, every request must carry `Authorization: Bearer <token>`
    keys: Mapping[str, KeyConfig] = field(
        default_factory=dict
    )  # callers by name; when there are any, a request needs one
    target_ms: float = 100.0  # an answer within this counts as goodput; who waits longer is refused by priority
    usd_per_hour: float = 0.0  # what answers may cost; beyond it the cheaper version answers, then requests are shed
    usd_per_1000: float = 0.0  # what 1,000 predictions may cost; a dearer version gives way to the cheaper one
    cheaper: str = "cheaper"  # the alias of the version that answers when the budget is spent
    grpc_port: int = 0  # port of the gRPC door beside HTTP; 0 opens none
    repository: bool = False  # whether clients may load and unload models (Open Inference Protocol)
    fleet_token: str = ""  # what a gateway shows to fetch and bring the states of sessions; without one they stay


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleConfig:
    """The fleet of a gateway: what a replica is, and how many there should be."""

    fleet: str = ""  # the command of a replica, with {port} in it; "" runs none
    least: int = 1  # replicas there always are; 0 allows none
    most: int = 4  # replicas there are at most
    busy: float = 0.6  # utilisation a replica should have
    memory: float = 0.85  # share of its memory a replica may use
    cool_s: float = 300.0  # the load must ask for less for so long before one leaves
    idle_s: float = 900.0  # without a request for so long, all may go (with `least = 0`)
    sample_s: float = 5.0  # how often the load is looked at
    start_s: float = 120.0  # a replica that is not ready by then has failed
    drain_s: float = 15.0  # the longest that a leaving replica may finish what it has begun
    orphan_s: float = 60.0  # how long replicas wait for a gateway that was killed to come back


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """When watching speaks up."""

    window: str = "7d"  # length of a window
    psi_warning: float = 0.1  # PSI from which drift is a warning
    psi_error: float = 0.25  # PSI from which drift is an error
    min_rows: int = 500  # windows with fewer rows are told, not judged
    latency_p99_ms: float = 50.0  # p99 latency from which a finding is made
    error_pct: float = 1.0  # share of failed requests from which a finding is made
    keep_days: int = 400  # how long observations are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The effective configuration; it is stored with every run."""

    prices: Prices = Prices()
    store: StoreConfig = StoreConfig()
    engine: EngineConfig = EngineConfig()
    serve: ServeConfig = ServeConfig()
    scale: ScaleConfig = ScaleConfig()
    watch: WatchConfig = WatchConfig()
    limits: Limits = Limits()

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data, with the bearer token and passwords left out."""
        body = dataclasses.asdict(self)
        body["serve"]["token"] = "set" if self.serve.token else ""
        body["serve"]["fleet_token"] = "set" if self.serve.fleet_token else ""
        for own in body["serve"]["keys"].values():
            own["key"] = "set" if own["key"] else ""
        body["store"]["catalog"] = self.store.catalog.split("@")[-1]
        return body


def load(root: Path, environ: Mapping[str, str]) -> Config:
    """Read `tenon.toml` under `root` and `TENON_*` from `environ` into a Config; ConfigError on the first fault."""
    file = root / FILE
    tree: dict[str, Any] = {}
    if file.is_file():
        try:
            tree = tomllib.loads(file.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                sentence("TOML", str(error), at=str(file), hint="see https://toml.io for the syntax")
            ) from error
    config: Config = _build(Config, tree, str(file))
    for name in sorted(environ):
        if name.startswith(PREFIX) and "__" in name:
            path = name[len(PREFIX) :].lower().split("__")
            config = _set(config, path, environ[name], f"environment variable {name}")
    return config


def _build(kind: type[Any], tree: Mapping[str, Any], place: str) -> Any:
    """Build a dataclass from nested mappings, refusing unknown keys and wrong types."""
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(sentence("a key tenon knows", f"'{key}'", at=place, hint=nearest(key, hints)))
        values[key] = _value(hints[key], value, f"{place}: {key}")
    return kind(**values)


def _set(config: Any, path: list[str], text: str, place: str) -> Any:
    """Return the config with the value at `path` replaced by `text`, parsed to the field's type."""
    hints = typing.get_type_hints(type(config))
    key = path[0]
    if key not in hints:
        raise ConfigError(sentence("a key tenon knows", f"'{key}'", at=place, hint=nearest(key, hints)))
    if len(path) > 1:
        inner = _named(hints[key])
        if inner is not None and len(path) > 2:
            held = getattr(config, key)
            one = _set(held.get(path[1], inner()), path[2:], text, place)
            return dataclasses.replace(config, **{key: {**held, path[1]: one}})
        if not dataclasses.is_dataclass(hints[key]):
            raise ConfigError(sentence("a section", f"the value '{key}'", at=place, hint=f"use TENON_{key.upper()}"))
        return dataclasses.replace(config, **{key: _set(getattr(config, key), path[1:], text, place)})
    value: Any = text
    if hints[key] in (int, float):
        try:
            value = hints[key](text)
        except ValueError:
            raise ConfigError(sentence(_word(hints[key]), f"'{text}'", at=place)) from None
    elif hints[key] is bool:
        value = text.lower() in ("1", "true", "yes", "on")
    return dataclasses.replace(config, **{key: value})


def _value(kind: Any, value: Any, place: str) -> Any:
    """Check one value against the field's type; a whole number is accepted where a decimal is expected."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(sentence("a table", _said(value), at=place))
        return _build(kind, value, place)
    inner = _named(kind)
    if inner is not None:
        if not isinstance(value, Mapping):
            raise ConfigError(sentence("a table of tables", _said(value), at=place))
        return {name: _value(inner, one, f"{place}.{name}") for name, one in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, types.UnionType) or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(sentence(_word(kind), _said(value), at=place))
    return value


def _named(kind: Any) -> Any:
    """Return what a table of named tables holds; None for any other type."""
    return typing.get_args(kind)[1] if typing.get_origin(kind) is Mapping else None


def _word(kind: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))


def _said(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else repr(value)
