"""`tenon route`: choose how requests find replicas, on recorded traffic first.

`simulate` replays a trace through the router that serves; `serve` is the gateway itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tenon.cli.output import Output, table
from tenon.cli.shared import Command, json_flag

NAMES = ("cache", "least-loaded", "round-robin", "hash")  # tenon.serving.route.POLICIES; a test compares them


thrift_option: Callable[[Command], Command] = click.option(
    "--thrift", type=float, default=24.0, show_default=True, help="Seconds to wait to save one of work."
)
target_option: Callable[[Command], Command] = click.option(
    "--target", "target_s", type=float, default=3.0, show_default=True, help="Seconds to the first answer to aim for."
)


@click.group()
def route() -> None:
    """Send requests to the replica that answers soonest, given what each has cached."""


@route.command()
@click.argument("trace", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--replicas", "-n", type=int, default=8, show_default=True, help="How many replicas.")
@click.option("--blocks", "-b", type=int, default=6_000, show_default=True, help="Blocks of 512 tokens each can cache.")
@click.option("--policy", "-p", multiple=True, help=f"One of {', '.join(NAMES)}; may be repeated (default: all).")
@thrift_option
@target_option
@click.option(
    "--prefill",
    "prefill_per_s",
    type=float,
    default=20_000.0,
    show_default=True,
    help="Input tokens a replica does a second.",
)
@click.option(
    "--decode", "decode_per_s", type=float, default=60.0, show_default=True,
    help="Output tokens a second of each request.",
)  # fmt: skip
@click.option(
    "--block-tokens", type=int, help="Tokens of a block of the trace (default: as its lengths say, else 512)."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of ties.")
@json_flag
def simulate(
    trace: Path, policy: tuple[str, ...], thrift: float, target_s: float, block_tokens: int | None, seed: int,
    as_json: bool, **fleet_given: Any,
) -> None:  # fmt: skip
    """Replay TRACE (JSON lines of timestamp, input_length, output_length, hash_ids) through the router.

    With one policy, --json prints one object; with several, a list of them.
    """
    from tenon.serving import simulation
    from tenon.serving.route import Routing
    from tenon.serving.simulation import Fleet, read_trace, simulate

    output = Output(as_json)
    routings = [Routing(policy=name, thrift=thrift, target_s=target_s) for name in policy or NAMES]
    requests = read_trace(trace)
    tokens = simulation.block_tokens(requests) if block_tokens is None else block_tokens
    fleet = Fleet(block_tokens=tokens, **fleet_given)
    found = []
    for number, routing in enumerate(routings):
        output.progress(number, len(routings), routing.policy)
        found.append(simulate(requests, fleet, routing, seed=seed))
    header = ["policy", "hit", "ttft p50 s", "ttft p99 s", "imbalance", "refused", f"within {target_s:g} s"]
    rows = [
        [d.policy, d.hit, d.ttft_p50_s, d.ttft_p99_s, d.imbalance, d.refused, f"{d.goodput:.1%}"] for d in found
    ]  # fmt: skip
    plain = [done.to_dict() for done in found]
    of = f" of {fleet.block_tokens} tokens" if fleet.block_tokens != simulation.BLOCK_TOKENS else ""
    said = f"{found[0].requests:,} requests to {fleet.replicas} replicas of {fleet.blocks:,} blocks{of}\n\n"
    output.emit(plain[0] if len(policy) == 1 else plain, said + table(header, rows))


@route.command("serve")
@click.option("--replica", "-r", "replicas", multiple=True, help="URL of a replica; may be repeated.")
@click.option("--fleet", default="", help="Command of a replica that is run here as often as needed; {port} in it.")
@click.option("--least", type=int, help="Replicas of the fleet there always are (default: tenon.toml, else 1).")
@click.option("--most", type=int, help="Replicas of the fleet there are at most (default: tenon.toml, else 4).")
@click.option("--host", default="", help="Address to listen on (default: tenon.toml, else 127.0.0.1).")
@click.option("--port", type=int, default=0, help="Port to listen on (default: tenon.toml, else 8321).")
@click.option("--policy", "-p", default="cache", show_default=True, help=f"One of {', '.join(NAMES)}.")
@thrift_option
@target_option
@click.option(
    "--state", type=click.Path(dir_okay=False, path_type=Path), default=".tenon/route.state", show_default=True,
    help="File that keeps what was learnt over a restart.",
)  # fmt: skip
@json_flag
def route_serve(as_json: bool, policy: str, thrift: float, target_s: float, **given: Any) -> None:
    """Be one address in front of replicas: another tenon, a vLLM, SGLang, llama.cpp or Triton server.

    With --fleet, replicas are processes of this machine: started, stopped and replaced as the load asks.
    """
    import os

    from tenon.flow import route as flow
    from tenon.serving.route import Routing

    output = Output(as_json)
    asked = flow.Front(routing=Routing(policy=policy, thrift=thrift, target_s=target_s), **given)
    done = flow.serve(asked, os.environ, output.say)
    output.emit(done, f"stopped; {done['offered']:,} requests, {done['retried']} retried")
