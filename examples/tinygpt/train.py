"""TinyGPT: a language model of a few million parameters, from nothing to served, in ten minutes on two cores.

    python examples/tinygpt/train.py                 # ten minutes, then examples/tinygpt/.tenon/export
    tenon serve examples/tinygpt/.tenon/export       # and any OpenAI client can ask it

It learns to write Python from the source files of the standard library of the Python that runs it: the list of files
is sorted, and the SHA-256 of a file's path decides whether the model trains on it or is judged by it. Text becomes
tokens by a byte-pair encoding learned here, in seconds. The simplest model goes first: an interpolated Kneser-Ney
n-gram over the same tokens (Chen and Goodman, Computer Speech & Language 13, 1999, with one discount for each order),
judged on the same held-out tokens; a network that does not beat it is not worth its price, and is not exported.

The network is a decoder in the shape of Llama (RMS norms, rotary positions, gated MLP, tied embedding), so that others
can open what is exported. Hidden matrices are trained by Muon, the rest by AdamW: at this size and time Muon reached
the loss of AdamW in about two thirds of the tokens. A guard watches the loss, a run remembers it, `tenon fit` asks the
four functions `model`, `optimizer`, `batch` and `loss` what a step would need.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import itertools
import json
import math
import os
import platform
import shutil
import sys
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tenon.errors import GateError, InputError, sentence
from tenon.flow import language
from tenon.ledger import Budget
from tenon.serving.lm.tokenizer import Tokenizer
from tenon.store import Store
from tenon.training import Guard, Rules, Run

HERE = Path(__file__).parent
SEED = 20130901
Tokens = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of the network; about 5 million parameters as it stands."""

    vocab: int = 4096
    context: int = 512
    width: int = 256
    layers: int = 5
    heads: int = 4
    hidden: int = 704
    theta: float = 10_000.0


SHAPE = Shape()
BATCH = 4  # sequences of a step: at this size many small steps learn more from a token than few large ones


# ── the text ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# Tests, tables of encodings and the manual as one string are no library code, and not there everywhere.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}


def sources() -> list[tuple[str, str]]:
    """Return (path, text) of the standard library's files that are UTF-8, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts) and not name.parts[0].startswith(("config-", "_sysconfigdata")):
            try:
                found.append((name.as_posix(), path.read_bytes().decode("utf-8")))
            except (UnicodeDecodeError, OSError):
                continue
    if len(found) < 100:
        got = f"{len(found)} files in {root}"
        raise InputError(sentence("the source files of Python's standard library", got, hint="use another Python"))
    return found


def held_out(name: str) -> bool:
    """Say whether a file judges the model and never trains it: one in sixteen, by the digest of its path."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 // 16


def learn_merges(words: Counter[str], count: int) -> list[tuple[int, int]]:
    """Learn the merges of a byte-pair encoding: again and again, join the commonest pair (ties: the smallest ids).

    Only words that hold the pair are touched, and a heap with outdated entries says which pair comes next: seconds for
    70,000 different words, where counting all pairs for each merge would take an hour.
    """
    spelled = [([1 + byte for byte in word.encode()], n) for word, n in sorted(words.items()) if n > 1]
    pairs: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for number, (ids, n) in enumerate(spelled):
        for pair in itertools.pairwise(ids):
            pairs[pair] += n
            where[pair].add(number)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < count:
        n, best = heapq.heappop(heap)
        if pairs[best] != -n:
            continue  # outdated: the pair was pushed again with the count it has now
        made = 257 + len(merges)
        merges.append(best)
        touched = set()
        for number in where.pop(best):
            ids, n = spelled[number]
            joined = _join(ids, best, made)
            spelled[number] = (joined, n)
            for pair in itertools.pairwise(ids):
                pairs[pair] -= n
                touched.add(pair)
            for pair in itertools.pairwise(joined):
                pairs[pair] += n
                where[pair].add(number)
                touched.add(pair)
        for pair in touched:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
    return merges


def _join(ids: list[int], pair: tuple[int, int], made: int) -> list[int]:
    out: list[int] = []
    for id in ids:
        if out and out[-1] == pair[0] and id == pair[1]:
            out[-1] = made
        else:
            out.append(id)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The text as tokens: what trains, what judges, how many bytes the latter stands for, and the tokenizer."""

    train: Tokens
    valid: Tokens
    valid_bytes: int
    files: int
    tokenizer: Tokenizer


def corpus(home: Path = HERE / ".tenon", shape: Shape = SHAPE, every: int = 1) -> Corpus:
    """Return the corpus (of every so-manieth file), from its cache when this Python's files have not changed."""
    texts = sources()[::every]
    made_of = hashlib.sha256(f"1 {shape.vocab} {platform.python_version()}".encode())
    for name, text in texts:
        made_of.update(f"{name}\0{len(text)}\0".encode() + hashlib.sha256(text.encode()).digest())
    folder = home / "corpus" / made_of.hexdigest()[:12]
    if not folder.exists():
        _prepare(texts, folder, shape)
    about = json.loads((folder / "about.json").read_text("utf-8"))
    return Corpus(
        train=np.load(folder / "train.npy"),
        valid=np.load(folder / "valid.npy"),
        valid_bytes=about["valid_bytes"],
        files=about["files"],
        tokenizer=Tokenizer.read((folder / "tokenizer.json").read_bytes(), str(folder / "tokenizer.json")),
    )


def _prepare(texts: Sequence[tuple[str, str]], folder: Path, shape: Shape) -> None:
    """Learn the encoding on the training files and write all files as tokens, beside, then renamed."""
    cut = Tokenizer.of([])
    words: Counter[str] = Counter()
    for name, text in texts:
        if not held_out(name):
            words.update(cut.words(text))
    tokenizer = Tokenizer.of(learn_merges(words, shape.vocab - len(cut.tokens)))
    end = list(tokenizer.specials.values())
    parts: dict[bool, list[int]] = {True: [*end], False: [*end]}  # each file stands between two ends
    for name, text in texts:
        parts[held_out(name)] += [*tokenizer.encode(text), *end]
    beside = folder.with_name(f"{folder.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    np.save(beside / "train.npy", np.array(parts[False], np.uint16))
    np.save(beside / "valid.npy", np.array(parts[True], np.uint16))
    (beside / "tokenizer.json").write_bytes(tokenizer.to_json())
    size = sum(len(text.encode()) for name, text in texts if held_out(name))
    (beside / "about.json").write_text(json.dumps({"valid_bytes": size, "files": len(texts)}), "utf-8")
    try:
        beside.rename(folder)
    except OSError:  # another process was quicker, with the same bytes
        shutil.rmtree(beside)


# ── the baseline ─────────────────────────────────────────────────────────────────────────────────────────────────────


def ngram_loss(train: Tokens, valid: Tokens, vocab: int, order: int = 5) -> float:
    """Return the mean loss (nats a token) of an interpolated Kneser-Ney n-gram on `valid`, without its first token.

    The highest order counts how often, lower ones after how many different words an n-gram was seen. An n-gram is one
    number of `order` digits to the base `vocab`, so that counting is sorting.
    """
    assert vocab**order < 2**63, (vocab, order)
    distinct = _codes(train, order, vocab)
    codes, counts = np.unique(distinct, return_counts=True)
    tables = [(codes, counts)]
    for size in range(order - 1, 0, -1):
        distinct = tables[0][0] % vocab**size  # the words before are dropped, each different n-gram stays once
        codes, counts = np.unique(distinct, return_counts=True)
        tables.insert(0, (codes, counts))
    found = np.full(len(valid) - 1, 1.0 / vocab)
    for size, (codes, counts) in enumerate(tables, 1):
        # Near the beginning, where `size` tokens do not exist yet, the lower order's probability stands.
        asked = _codes(valid, size, vocab)[1 if size == 1 else 0 :]
        lower = found[max(size - 2, 0) :]
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        contexts, starts = np.unique(codes // vocab, return_index=True)
        total = np.add.reduceat(counts, starts)
        kinds = np.diff([*starts, len(codes)])
        seen = _look_up(codes, counts, asked)
        context_total, context_kinds = (_look_up(contexts, values, asked // vocab) for values in (total, kinds))
        known = context_total > 0
        above = np.maximum(seen - discount, 0.0) + discount * context_kinds * lower
        found[max(size - 2, 0) :] = np.where(known, above / np.maximum(context_total, 1), lower)
    return float(-np.log(found).mean())


def _codes(tokens: Tokens, size: int, vocab: int) -> NDArray[np.int64]:
    code = np.zeros(len(tokens) - size + 1, np.int64)
    for at in range(size):
        code = code * vocab + tokens[at : len(tokens) - size + 1 + at]
    return code


def _look_up(keys: NDArray[np.int64], values: NDArray[Any], asked: NDArray[np.int64]) -> NDArray[np.int64]:
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)


# ── the network ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Block(nn.Module):
    """One layer: attention over what came before, then a gated MLP, each added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.input_layernorm = nn.RMSNorm(shape.width, eps=1e-5)
        self.self_attn = nn.ModuleDict(
            {f"{name}_proj": nn.Linear(shape.width, shape.width, bias=False) for name in ("q", "k", "v", "o")}
        )
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=1e-5)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(shape.width, shape.hidden, bias=False),
                "up_proj": nn.Linear(shape.width, shape.hidden, bias=False),
                "down_proj": nn.Linear(shape.hidden, shape.width, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, width = x.shape
        h = self.input_layernorm(x)
        q, k, v = (
            self.self_attn[f"{name}_proj"](h).view(rows, length, self.heads, -1).transpose(1, 2) for name in "qkv"
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # Written out, because at this length PyTorch's fused attention takes twice as long on a processor.
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        seen = scores.masked_fill(later, -math.inf).softmax(-1).to(v.dtype) @ v
        x = x + self.self_attn["o_proj"](seen.transpose(1, 2).reshape(rows, length, width))
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](functional.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of a head's halves by its position's angle (Su et al. 2021, in Llama's order)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-right, left), dim=-1) * sin.to(x.dtype)


class TinyGPT(nn.Module):
    """The decoder; its parameters have the names of Llama's, so that the export is one."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        size = shape.width // shape.heads
        angle = torch.outer(torch.arange(shape.context), shape.theta ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at every position."""
        length = tokens.shape[1]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return functional.linear(self.norm(x), self.embed_tokens.weight)


def model(shape: Shape = SHAPE) -> nn.Module:
    """Return a new network, the same for the same seed; what writes into the stream begins at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made = TinyGPT(shape)
        for name, weight in made.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02 if "embed" in name else weight.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
    return made


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices (Jordan et al. 2024), AdamW for the embedding and the norms, as one optimiser.

    Muon makes the momentum of a matrix orthogonal, by five steps of a Newton-Schulz iteration, so that no direction of
    the update outshines the others.
    """

    def __init__(self, matrices: Sequence[Tensor], others: Sequence[Tensor], *, lr: float, adam_lr: float) -> None:
        groups = [
            {"params": list(matrices), "lr": lr, "top": lr, "muon": True},
            {"params": list(others), "lr": adam_lr, "top": adam_lr, "muon": False},
        ]
        super().__init__(groups, {"momentum": 0.95, "betas": (0.9, 0.95), "decay": 0.05})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        value = closure() if closure is not None else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._one(weight, weight.grad, group, self.state[weight])
        return value

    def _one(self, weight: Tensor, grad: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        if not state:
            state.update(step=0, first=torch.zeros_like(weight))
            if not group["muon"]:
                state["second"] = torch.zeros_like(weight)
        state["step"] += 1
        first = state["first"]
        if group["muon"]:
            first.lerp_(grad, 1 - group["momentum"])
            update = orthogonal(grad.lerp(first, group["momentum"]))
            weight.mul_(1 - group["lr"] * group["decay"])
            weight.add_(update, alpha=-group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)
            return
        slow, slower = group["betas"]
        first.lerp_(grad, 1 - slow)
        state["second"].lerp_(grad * grad, 1 - slower)
        size = (state["second"] / (1 - slower ** state["step"])).sqrt_().add_(1e-10)
        weight.addcdiv_(first, size, value=-group["lr"] / (1 - slow ** state["step"]))


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest matrix with singular values near one, by a quintic Newton-Schulz iteration."""
    x = matrix / (matrix.norm() + 1e-7)
    if quick_bfloat16(matrix.device.type):
        x = x.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of this network's parameters."""
    hidden = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    return Muon(hidden, others, lr=0.02, adam_lr=0.004)


def batch(size: int = BATCH, home: Path = HERE / ".tenon") -> tuple[Tensor, Tensor]:
    """Return `size` sequences of the training text and, for each of their tokens, the next one."""
    return next(batches(corpus(home).train, size, SHAPE.context, SEED))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy, in nats a token."""
    tokens, targets = batch
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=quick_bfloat16(tokens.device.type)):
        logits = model(tokens)
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def batches(tokens: Tokens, size: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for ever: each pass cuts the text at another offset, and shuffles the pieces."""
    rng = np.random.default_rng(seed)
    text = torch.from_numpy(tokens.astype(np.int64))
    while True:
        starts = np.arange(int(rng.integers(context)), len(tokens) - context - 1, context)
        rng.shuffle(starts)
        for at in range(0, len(starts) - size + 1, size):
            rows = torch.stack([text[start : start + context + 1] for start in starts[at : at + size]])
            yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@lru_cache(maxsize=4)
def quick_bfloat16(device: str = "cpu") -> bool:
    """Say whether this device multiplies bfloat16 in hardware; emulated, it would be many times slower."""
    if device != "cpu":
        return True
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(word in flags.read_text("utf-8") for word in ("avx512_bf16", "amx_bf16"))


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to train, in minutes or (when not 0) in tokens, and where everything is kept."""

    minutes: float = 10.0
    tokens: int = 0
    home: Path = HERE / ".tenon"
    shape: Shape = SHAPE
    valid_tokens: int = 1 << 30  # of those held out, how many to judge by
    every: int = 1  # take every so-manieth file of the library


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The loss on the held-out tokens, of the network and of the n-gram."""

    loss: float
    ngram_loss: float
    bits_per_byte: float
    ngram_bits_per_byte: float
    tokens: int
    seconds: float


@torch.no_grad()
def judge(net: nn.Module, valid: Tokens, context: int) -> float:
    """Return the mean loss on `valid` without its first token; `valid` is as long as `whole_steps` says.

    Windows step by half their length and each judges its second half, so that every token but the first few is
    predicted from at least half a context.
    """
    half = context // 2
    text = torch.from_numpy(valid.astype(np.int64))
    assert len(text) % half == 1, (len(text), half)
    starts = torch.arange(0, max(len(text) - context, 1), half)
    total = 0.0
    for group in starts.split(16):
        rows = torch.stack([text[start : start + context + 1] for start in group])
        with torch.autocast("cpu", torch.bfloat16, enabled=quick_bfloat16()):
            logits = net(rows[:, :-1])
        losses = functional.cross_entropy(logits.transpose(1, 2).float(), rows[:, 1:], reduction="none")
        total += float(losses[:, half:].sum()) + (float(losses[0, :half].sum()) if not group[0] else 0.0)
    return total / (len(starts) * half + half)


def whole_steps(valid: Tokens, context: int, most: int) -> Tokens:
    """Return the beginning of the held-out tokens that both models are judged by."""
    half = context // 2
    return valid[: (min(len(valid), most) - 1) // half * half + 1]


def pace(part: float) -> float:
    """Return the share of the learning rate after this part of the training: warm up, hold, go down to nothing."""
    return min(1.0, part / 0.02 + 0.02, max(0.0, 1.0 - part) / 0.6)


def train(plan: Plan, text: Corpus, run: Run, guard: Guard, say: Callable[[str], None]) -> tuple[nn.Module, int]:
    """Train a new network until the time or the tokens are spent, or the guard says stop; return it and the tokens."""
    net = model(plan.shape)
    steps = optimizer(net)
    began = time.monotonic()
    seen, shown = 0, began
    for step, rows in enumerate(batches(text.train, BATCH, plan.shape.context, SEED)):
        part = seen / plan.tokens if plan.tokens else (time.monotonic() - began) / (60 * plan.minutes)
        if part >= 1:
            break
        for group in steps.param_groups:
            group["lr"] = group["top"] * pace(part)
        steps.zero_grad(set_to_none=True)
        value = loss(net, rows)
        value.backward()
        reached = value.item()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0).item()
        if not guard.step(step, loss=reached, grad_norm=norm):
            break
        steps.step()
        seen += rows[0].numel()
        run.log(step, loss=reached, grad_norm=norm, tokens=seen)
        if time.monotonic() - shown > 15:
            shown = time.monotonic()
            say(f"{part:4.0%}  step {step:,}  {seen:,} tokens  loss {reached:.3f}  {seen / (shown - began):,.0f}/s")
    return net, seen


def export(net: nn.Module, text: Corpus, plan: Plan, folder: Path, about: dict[str, Any]) -> None:
    """Write the folder that `tenon serve` (and whatever reads Llama's layout) opens: beside, then renamed."""
    from safetensors.torch import save_file

    shape = plan.shape
    end = text.tokenizer.specials["<|endoftext|>"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
    # A base model knows no roles: what is said stands in a comment, what is answered is code.
    chat = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}\n"
        "{% else %}# {{ m.content | replace('\n', '\n# ') }}\n{% endif %}{% endfor %}"
    )
    files = {
        "config.json": config,
        "tokenizer_config.json": {"chat_template": chat, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        "tenon.json": {"format": 1, "name": "tinygpt", "embeddings": "mean", **about},
    }
    beside = folder.with_name(f"{folder.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    (beside / "tokenizer.json").write_bytes(text.tokenizer.to_json())
    for name, body in files.items():
        (beside / name).write_text(json.dumps(body, indent=2) + "\n", "utf-8")
    weights = {f"model.{name}": weight.detach().contiguous() for name, weight in net.named_parameters()}
    save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})
    old = folder.with_name(f"{folder.name}.old.{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def main(plan: Plan, say: Callable[[str], None]) -> Judged:
    """Judge the n-gram, train the network, judge it by the same tokens, and export it if it is the better one."""
    text = corpus(plan.home, plan.shape, plan.every)
    valid = whole_steps(text.valid, plan.shape.context, plan.valid_tokens)
    per_byte = len(text.valid) / text.valid_bytes / math.log(2)
    say(f"{text.files} files: {len(text.train):,} tokens train, {len(valid):,} held out judge")
    simple = ngram_loss(text.train, valid, plan.shape.vocab)
    say(f"5-gram: loss {simple:.4f}, {simple * per_byte:.4f} bits per byte")
    budget = Budget(hours=plan.minutes / 60 * 1.5 + 0.05)
    id = hashlib.sha256(json.dumps([asdict(plan.shape), plan.minutes, plan.tokens, SEED]).encode()).hexdigest()[:12]
    with Store.open(plan.home.parent if plan.home.name == ".tenon" else plan.home) as store:
        params = {**asdict(plan.shape), "batch": BATCH, "minutes": plan.minutes, "tokens": plan.tokens}
        with Run.start(store, id, "tinygpt", trainer="tinygpt", seed=SEED, params=params, task="language") as run:
            # The rate goes down to nothing at the end, so a loss that lies flat for a while is no reason to stop.
            guard = Guard(budget=budget, run=run, rules=Rules(flat=False))
            began = time.monotonic()
            net, seen = train(plan, text, run, guard, say)
            seconds = time.monotonic() - began
            reached = judge(net, valid, plan.shape.context)
            judged = Judged(
                loss=reached,
                ngram_loss=simple,
                bits_per_byte=reached * per_byte,
                ngram_bits_per_byte=simple * per_byte,
                tokens=seen,
                seconds=seconds,
            )
            run.log(0, valid_loss=reached, ngram_loss=simple)
            run.update(valid=asdict(judged))
            say(f"tinygpt: loss {reached:.4f}, {judged.bits_per_byte:.4f} bits per byte, {seen:,} tokens seen")
            if not plan.tokens and plan.minutes >= 5 and reached >= simple:
                got = f"{reached:.4f}"
                raise GateError(sentence(f"a loss under the 5-gram's {simple:.4f}", got, hint="train for longer"))
            about = {"about": "Python source, from its standard library", "run": id, "valid": asdict(judged)}
            export(net, text, plan, plan.home / "export", about)
            language.keep(store, plan.home / "export", run=id)
            say(f"exported to {plan.home / 'export'}")
    return judged


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train TinyGPT on the standard library and export it for serving.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to train (default 10)")
    parser.add_argument("--tokens", type=int, default=0, help="how many tokens to see, instead of minutes")
    parser.add_argument("--home", type=Path, default=HERE / ".tenon", help="where everything is kept")
    given = parser.parse_args()

    def say(said: str) -> None:
        """Say how far it is."""
        sys.stderr.write(said + "\n")

    main(Plan(minutes=given.minutes, tokens=given.tokens, home=given.home), say)
