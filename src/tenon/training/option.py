"""What an experiment tells its trainers beside the data: seed, threads, bounds, and the guard that watches them.

Built-in trainers are ``train(data, run, options)``. A user's own is ``train(data, run)`` and finds its guard as
``run.guard``: what it does with seeds and threads is its own affair, so none are pressed on it. `admit` trains its
samples with the same options on one thread and a few rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenon.training.guard import Guard


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to train: the same options and data give the same model, whatever the number of threads is.

    `threads` 0 takes as many cores as stand idle when training begins.
    """

    guard: Guard
    seed: int = 0
    threads: int = 0
    rounds: int = 1_000
    patience: int = 50
