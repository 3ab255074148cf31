"""TinyGPT is trained, judged beside its baseline and exported; the baseline and the merges are those of the books."""

from __future__ import annotations

import importlib.util
import itertools
import math
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tenon.store import Store

from ..script import loaded

SCRIPT = Path(__file__).parents[2] / "examples" / "tinygpt" / "train.py"


@pytest.fixture(scope="module")
def tinygpt() -> ModuleType:
    if find_spec("torch") is None or find_spec("safetensors") is None:
        pytest.skip("extra 'torch' is not installed")
    return loaded("examples/tinygpt/train.py")


@pytest.fixture(scope="module")
def text(tinygpt: ModuleType) -> ModuleType:
    return importlib.import_module("stdlib_text")


@pytest.fixture(scope="module")
def trained(tinygpt: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train a much smaller one for a few steps, the whole way."""
    home = tmp_path_factory.mktemp("project") / ".tenon"
    shape = tinygpt.Shape(vocab=320, context=64, width=32, layers=2, heads=2, hidden=48)
    said: list[str] = []
    plan = tinygpt.Plan(tokens=64 * tinygpt.BATCH * 40, home=home, shape=shape, valid_tokens=2000, every=6)
    return tinygpt.main(plan, said.append), plan, said


def test_a_short_run_learns_exports_and_is_remembered(tinygpt: ModuleType, trained: Any) -> None:
    judged, plan, said = trained
    assert judged.tokens == plan.tokens and judged.loss < 0.95 * math.log(320), "40 steps are better than a guess"
    assert judged.bits_per_byte / judged.loss == pytest.approx(judged.ngram_bits_per_byte / judged.ngram_loss)
    assert any("5-gram" in line for line in said[:2]), "the simplest model goes first"
    with Store.open(plan.home.parent, read_only=True) as store:
        (run,) = store.find("run")
        (kept,) = store.find("language")
        assert (run["status"], kept["run"]) == ("done", run["id"])
        assert run["valid"]["loss"] == judged.loss
        assert sum(batch.rows for batch in store.read("metrics", run["id"])) >= 40


# The first rank is killed once at each of two changes of files; the death of another one is test_distributed's.
DYING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {examples!r})
import train
from tenon.training.ranks import Ranks

home, dies = Path({home!r}), {dies}
asked, real = 0, train.loss

def die(why):
    mark = home / f"died-{{why}}"
    if why in dies and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

def loss(model, batch):
    global asked
    asked += 1
    return real(model, batch)

def see(event, args):
    if event == "os.rename" and not home.joinpath("export").exists():
        die("keeping" if "step-" in str(args[1]) and asked > 20 else "exporting" if "export" in str(args[1]) else "")

sys.addaudithook(see)
train.loss = loss
shape = train.Shape(vocab=320, context=64, width=32, layers=2, heads=2, hidden=48)
plan = train.Plan(tokens=64 * 4 * 40, home=home, shape=shape, valid_tokens=2000, every=6, keep=7)
with Ranks.of(os.environ) as ranks:
    train.main(plan, print, ranks) if ranks.first else train.helped(plan, ranks)
"""


def in_two_processes(folder: Path, text: Path, dies: Sequence[str] = ()) -> tuple[Path, Any]:
    """Train it in two processes, with the text read already; return where everything is kept, and how it ended."""
    from tenon.training.launch import launch

    home = folder / ".tenon"
    home.mkdir(parents=True)
    shutil.copytree(text / "corpus", home / "corpus")
    script = folder / "small.py"
    script.write_text(DYING.format(examples=str(SCRIPT.parent), home=str(home), dies=list(dies)))
    return home, launch([sys.executable, str(script)], nproc=2, folder=folder / "watch", restarts=len(dies))


def test_two_processes_train_it_as_one_and_go_on_exactly_wherever_they_are_killed(
    tinygpt: ModuleType, trained: Any, tmp_path: Path
) -> None:
    judged, plan, _ = trained
    home, ended = in_two_processes(tmp_path / "whole", plan.home)
    assert ended and ended.attempts == 1, ended.findings
    with Store.open(home.parent, read_only=True) as store:
        (run,) = store.find("run")
    assert run["status"] == "done" and run["valid"]["tokens"] == judged.tokens
    # The same batches in halves: what differs is the order in which gradients are added.
    assert run["valid"]["loss"] == pytest.approx(judged.loss, rel=0.01)
    dies = ("keeping", "exporting")
    again, ended = in_two_processes(tmp_path / "broken", plan.home, dies)
    assert ended and ended.attempts == 1 + len(dies), ended.findings
    for name in ("model.safetensors", "config.json"):
        assert (again / "export" / name).read_bytes() == (home / "export" / name).read_bytes()
    with Store.open(again.parent, read_only=True) as store:
        (went_on,) = store.find("run")
    assert went_on["valid"]["loss"] == run["valid"]["loss"] and went_on["valid"]["tokens"] == run["valid"]["tokens"]
    assert not any((one / "checkpoints").exists() and list((one / "checkpoints").iterdir()) for one in (home, again))


def test_what_was_exported_says_what_was_trained(tinygpt: ModuleType, trained: Any) -> None:
    """The served arithmetic against the trained network's own, and as tokens over several texts."""
    import torch
    from safetensors.torch import load_file

    from tenon.serving.lm import Bundle
    from tenon.serving.lm.network import Network, Part

    _, plan, _ = trained
    folder = plan.home / "export"
    bundle = Bundle.open(folder)
    assert bundle.name == "tinygpt" and bundle.chat and bundle.embeddings == "mean"
    net = tinygpt.model(plan.shape)
    weights = {name.removeprefix("model."): w for name, w in load_file(folder / "model.safetensors").items()}
    assert not net.load_state_dict(weights, strict=False).missing_keys
    network = Network(bundle, 8, 64)
    valid = tinygpt.corpus(plan.home, plan.shape.vocab, plan.every).valid
    for start in range(0, 600, 60):
        tokens = valid[start : start + 60].astype(int).tolist()
        with torch.no_grad():
            wanted = net(torch.tensor([tokens]))[0].numpy()
        got, _ = network.step([Part(tokens=tokens, start=0, pages=[0, 1])], list(range(60)))
        np.testing.assert_allclose(got, wanted, atol=1e-3, rtol=1e-3)
        assert (got.argmax(1) == wanted.argmax(1)).all()
    messages = [{"role": "user", "content": "add\ntwo"}, {"role": "assistant", "content": "x = 1 + 1"}]
    assert bundle.render(messages) == "# add\n# two\nx = 1 + 1\n"


def test_the_corpus_is_the_same_again_and_never_judges_by_what_it_trained_on(
    tinygpt: ModuleType, text: ModuleType, trained: Any
) -> None:
    _, plan, _ = trained
    (cached,) = (plan.home / "corpus").iterdir()
    before = cached.stat().st_mtime_ns
    kept = tinygpt.corpus(plan.home, plan.shape.vocab, plan.every)
    assert cached.stat().st_mtime_ns == before and [cached] == list((plan.home / "corpus").iterdir())
    names = [name for name, _ in text.sources()]
    assert names == sorted(names, key=Path) and 0 < sum(map(text.held_out, names)) < len(names) / 8
    judged = "".join(t for name, t in text.sources()[:: plan.every] if text.held_out(name))
    assert kept.tokenizer.decode(kept.valid.tolist()).replace("<|endoftext|>", "") == judged.replace(
        "<|endoftext|>", ""
    )
    assert kept.valid_bytes == len(judged.encode())


def test_the_four_functions_make_a_training_step(tinygpt: ModuleType, trained: Any) -> None:
    _, plan, _ = trained
    net = tinygpt.model(plan.shape)
    tokens = tinygpt.corpus(plan.home, plan.shape.vocab, plan.every).train
    rows = next(tinygpt.batches(tokens, 2, plan.shape.context, 1))
    assert rows[0].shape == rows[1].shape == (2, 64) and bool((rows[0][:, 1:] == rows[1][:, :-1]).all())
    tinygpt.begin_from_counts(net, tokens, plan.shape)
    counted = tinygpt.loss(net, rows).item()
    net = tinygpt.model(plan.shape)
    first = tinygpt.loss(net, rows)
    assert counted < first.item() - 0.5, "a network that begins from counts knows more"
    assert first.ndim == 0 and first.item() == pytest.approx(math.log(320), abs=0.1)
    steps = tinygpt.optimizer(net)
    first.backward()
    steps.step()
    assert tinygpt.loss(net, rows).item() < first.item()


# ── the baseline and the merges ──────────────────────────────────────────────────────────────────────────────────────


def kneser_ney(train: Sequence[int], valid: Sequence[int], vocab: int, order: int) -> float:
    """The same n-gram, one token at a time with dictionaries."""
    tables: list[Counter[tuple[int, ...]]] = [
        Counter(tuple(train[at : at + order]) for at in range(len(train) - order + 1))
    ]
    for _ in range(order - 1):
        tables.insert(0, Counter(gram[1:] for gram in tables[0]))
    discounts = [
        once / (once + 2 * sum(n == 2 for n in table.values()))
        if (once := sum(n == 1 for n in table.values()))
        else 0.5
        for table in tables
    ]

    def chance(word: int, before: tuple[int, ...]) -> float:
        if len(before) + 1 > order:
            return chance(word, before[1:])
        table, discount = tables[len(before)], discounts[len(before)]
        lower = chance(word, before[1:]) if before else 1 / vocab
        followers = [n for gram, n in table.items() if gram[:-1] == before]
        if not followers:
            return lower
        seen = max(table[(*before, word)] - discount, 0.0)
        return (seen + discount * len(followers) * lower) / sum(followers)

    losses = [-math.log(chance(valid[at], tuple(valid[max(0, at - order + 1) : at]))) for at in range(1, len(valid))]
    return sum(losses) / len(losses)


def test_the_baseline_is_the_kneser_ney_of_the_books(tinygpt: ModuleType) -> None:
    dice = np.random.default_rng(2)
    train = np.minimum(dice.geometric(0.3, 400), 9).astype(np.uint16)
    valid = np.minimum(dice.geometric(0.3, 60), 11).astype(np.uint16)
    for order in (1, 2, 3, 5):
        wanted = kneser_ney(train.tolist(), valid.tolist(), 12, order)
        assert tinygpt.ngram_loss(train, valid, 12, order) == pytest.approx(wanted, rel=1e-9), order


def test_merges_join_the_commonest_pair_again_and_again(text: ModuleType) -> None:
    words = Counter({"lower": 5, "low": 7, "newest": 6, "widest": 3, "once": 1, "né": 4})
    spelled = {word: [1 + byte for byte in word.encode()] for word, n in words.items() if n > 1}
    wanted = []
    for made in range(257, 257 + 9):
        pairs: Counter[tuple[int, int]] = Counter()
        for word, ids in spelled.items():
            for pair in itertools.pairwise(ids):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        wanted.append(best)
        for ids in spelled.values():
            at = 0
            while at + 1 < len(ids):
                if (ids[at], ids[at + 1]) == best:
                    ids[at : at + 2] = [made]
                at += 1
    assert text.learn_merges(words, 9) == wanted
