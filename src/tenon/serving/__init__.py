"""Serving: the gateway that answers requests with a model's scores, and takes in facts and labels.

    service = Service(name="late", version=..., predictor=..., online=..., inputs={"hour": "int", ...}, threshold=0.5)
    run(build_app([service], seams=Seams(store=store, sources=sources, tap=collector.offer)))

`app` finds the door of a request; `rows` checks it, `lane` batches and scores, `live` and `oip` speak JSON and the
Open Inference Protocol, `posting` and `keeping` take facts and labels durably, `tap` and `meter` let others watch,
`server` listens. `candidate` tries another version beside it, judged by `trial`; `keys` and `spend` bound who may
ask. `play` (replay) and `client` are the other side of the wire. `route` chooses among replicas, with the beliefs of
`cachemap`; `simulation` replays a trace through it, `shape` makes one up. `gateway` stands in front of `replica`s, by
`need`, `admission` and `tally`; `scale` and `fleet` say and do how many, joined by `autoscale`; `journal` keeps the
sessions of `stateful` models over the death of a replica. Starting it imports neither torch nor ingest nor training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.serving.admission import Gate, Quota
    from tenon.serving.app import App, build_app
    from tenon.serving.autoscale import Autoscaler
    from tenon.serving.client import Client
    from tenon.serving.fleet import LocalFleet, Machine
    from tenon.serving.gateway import Gateway
    from tenon.serving.keeping import restore, to_ipc
    from tenon.serving.play import Pace, Replayed, Tick, replay
    from tenon.serving.replica import Remote, Within, connect
    from tenon.serving.route import Need, Router, Routing, Ticket
    from tenon.serving.scale import Decision, Sample, Scaling, Starts, decide
    from tenon.serving.server import listen, run, running
    from tenon.serving.service import Seams, Service, Settings
    from tenon.serving.shape import shaped
    from tenon.serving.simulation import Fleet, Simulated, read_trace, simulate
    from tenon.serving.stateful import Stateful, Steps
    from tenon.serving.trial import Bounds, Evidence, Trial, judge

_HOMES = {
    "admission": ("Gate", "Quota"),
    "app": ("App", "build_app"),
    "autoscale": ("Autoscaler",),
    "client": ("Client",),
    "fleet": ("LocalFleet", "Machine"),
    "gateway": ("Gateway",),
    "keeping": ("restore", "to_ipc"),
    "play": ("Pace", "Replayed", "Tick", "replay"),
    "replica": ("Remote", "Within", "connect"),
    "route": ("Need", "Router", "Routing", "Ticket"),
    "scale": ("Decision", "Sample", "Scaling", "Starts", "decide"),
    "server": ("listen", "run", "running"),
    "service": ("Seams", "Service", "Settings"),
    "shape": ("shaped",),
    "simulation": ("Fleet", "Simulated", "read_trace", "simulate"),
    "stateful": ("Stateful", "Steps"),
    "trial": ("Bounds", "Evidence", "Trial", "judge"),
}
__all__ = [
    "App",
    "Autoscaler",
    "Bounds",
    "Client",
    "Decision",
    "Evidence",
    "Fleet",
    "Gate",
    "Gateway",
    "LocalFleet",
    "Machine",
    "Need",
    "Pace",
    "Quota",
    "Remote",
    "Replayed",
    "Router",
    "Routing",
    "Sample",
    "Scaling",
    "Seams",
    "Service",
    "Settings",
    "Simulated",
    "Starts",
    "Stateful",
    "Steps",
    "Tick",
    "Ticket",
    "Trial",
    "Within",
    "build_app",
    "connect",
    "decide",
    "judge",
    "listen",
    "read_trace",
    "replay",
    "restore",
    "run",
    "running",
    "shaped",
    "simulate",
    "to_ipc",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
