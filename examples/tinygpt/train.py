"""TinyGPT: a language model of a few million parameters, from nothing to served, in ten minutes on two cores.

    python examples/tinygpt/train.py                 # ten minutes, then examples/tinygpt/.tenon/export
    tenon train examples/tinygpt/train.py --nproc 2  # the same in two processes, each with half of every batch
    tenon serve examples/tinygpt/.tenon/export       # and any OpenAI client can ask it

It learns to write Python from the source files of the standard library of the Python that runs it: the list of files
is sorted, and the SHA-256 of a file's path decides whether the model trains on it or is judged by it. Text becomes
tokens by a byte-pair encoding learned here, in seconds. The simplest model goes first: an interpolated Kneser-Ney
n-gram over the same tokens (Chen and Goodman, Computer Speech & Language 13, 1999, with one discount for each order),
judged on the same held-out tokens; a network that does not beat it is not worth its price, and is not exported.

The network is a decoder in the shape of Llama (RMS norms, rotary positions, gated MLP), so that others can open what is
exported. It begins where counting pairs of tokens ends. Hidden matrices are trained by Muon, the rest by Adam. A guard
watches the loss, a run remembers it, `tenon fit` asks the four functions `model`, `optimizer`, `batch` and `loss` what
a step would need. Checkpoints are kept until it is exported; killed at any point, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kneser_ney import ngram_loss
from stdlib_text import Corpus, Tokens, corpus
from torch import Tensor, nn
from torch.nn import functional

from tenon.errors import GateError, UsageError, sentence
from tenon.flow import language
from tenon.ledger import Budget
from tenon.store import Store
from tenon.training import Guard, Resume, Rules, Run, keep_memory
from tenon.training.ranks import Ranks

HERE = Path(__file__).parent
SEED = 20130901


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of the network; 5 million parameters as it stands."""

    vocab: int = 4096
    context: int = 512
    width: int = 256
    layers: int = 4
    heads: int = 4
    hidden: int = 640
    theta: float = 10_000.0


SHAPE = Shape()
BATCH = 4  # sequences of a step: at this size many small steps learn more from a token than few large ones


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
        self.lm_head = nn.Linear(shape.width, shape.vocab, bias=False)
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
        return self.lm_head(self.norm(x))


OUTER = ("embed_tokens.weight", "lm_head.weight")  # from tokens, and to them


def model(shape: Shape = SHAPE) -> nn.Module:
    """Return a new network, the same for the same seed; what writes into the stream begins at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made = TinyGPT(shape)
        for name, weight in made.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02 if name in OUTER else weight.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
    return made


@torch.no_grad()
def begin_from_counts(net: nn.Module, tokens: Tokens, shape: Shape, prior: float = 200.0) -> None:
    """Let a new network begin where counting pairs of tokens ends, which saves it some 200,000 tokens.

    The table of log P(next | token), smoothed towards the unigram by `prior` counts, is cut down to `width` dimensions:
    its singular vectors embed the tokens, and least squares, weighted by how common a token is, give the output.
    The layers between begin by adding nothing. Solved in double precision, so that it is the same bits every time.
    """
    vocab, text = shape.vocab, tokens.astype(np.int64)
    pairs = np.bincount(text[:-1] * vocab + text[1:], minlength=vocab * vocab).reshape(vocab, vocab)
    counts = torch.from_numpy(pairs.astype(np.float32))
    chance = (counts.sum(0) + 1) / (counts.sum() + vocab)
    wanted = torch.log((counts + prior * chance) / (counts.sum(1, keepdim=True) + prior))
    weight = (counts.sum(1, keepdim=True) + 1).sqrt()
    surprise = wanted - chance.log()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        _, _, directions = torch.svd_lowrank((surprise * weight.sqrt()).double(), q=shape.width - 1, niter=2)
    inner = surprise @ directions.float()
    inner = torch.cat([inner / inner.square().mean().sqrt(), torch.full((vocab, 1), 2.0)], dim=1)  # one for the unigram
    inner = inner / inner.square().mean(1, keepdim=True).sqrt()
    named = dict(net.named_parameters())
    named[OUTER[0]].copy_(inner)
    solved = torch.linalg.lstsq((inner * weight).double(), (wanted * weight).double()).solution
    named[OUTER[1]].copy_(solved.T)


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices (Jordan et al. 2024), Adam for embedding, output and norms, as one optimiser.

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
    hidden = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and name not in OUTER]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or name in OUTER]
    return Muon(hidden, others, lr=0.02, adam_lr=0.003)


def batch(size: int = BATCH, home: Path = HERE / ".tenon") -> tuple[Tensor, Tensor]:
    """Return `size` sequences of the training text and, for each of their tokens, the next one."""
    return next(batches(corpus(home, SHAPE.vocab).train, size, SHAPE.context, SEED))


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
    gpu: str = ""  # refuse to begin unless a step fits this one; without a name, the GPU that is here, if any
    every: int = 1  # take every so-manieth file of the library
    keep: int = 0  # steps between checkpoints; 0: a minute between them

    @property
    def id(self) -> str:
        """Name what would be trained: the same plan is the same run."""
        known = [asdict(self.shape), self.minutes, self.tokens, self.every, BATCH, SEED]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]

    @property
    def checkpoints(self) -> Path:
        """Return where the run keeps its checkpoints while it trains."""
        return self.home / "checkpoints" / self.id


class Stopwatch:
    """The seconds trained, those before a resume included."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._since = time.monotonic() - state["seconds"]


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


def train(plan: Plan, text: Corpus, run: Run | None, guard: Guard, say: Callable[[str], None]) -> tuple[nn.Module, int]:
    """Train until the time or the tokens are spent, or the guard says stop; return the network and the tokens seen.

    It goes on from the last checkpoint of the same plan: what was seen by then is passed over, in the same order.
    """
    ranks = guard.ranks or Ranks()
    net = model(plan.shape)
    begin_from_counts(net, text.train, plan.shape)
    shared = nn.parallel.DistributedDataParallel(net) if ranks.size > 1 else net
    steps, watch = optimizer(net), Stopwatch()
    parts = {"model": shared, "optimizer": steps, "watch": watch}
    resume = Resume(plan.checkpoints, every=plan.keep, seconds=60.0, guard=guard, **parts)
    first = resume.restore()
    began, shown = watch.seconds, watch.seconds
    seen, before = 0, first * BATCH * plan.shape.context
    for step, whole in enumerate(islice(batches(text.train, BATCH, plan.shape.context, SEED), first, None), first):
        part = (before + seen) / plan.tokens if plan.tokens else watch.seconds / (60 * plan.minutes)
        part = ranks.words(part)[0]  # the first one's clock: all must have the same rate and the same last step
        if part >= 1:
            break
        for group in steps.param_groups:
            group["lr"] = group["top"] * pace(part)
        steps.zero_grad(set_to_none=True)
        rows = whole[0][ranks.rank :: ranks.size], whole[1][ranks.rank :: ranks.size]
        value = loss(shared, rows)
        value.backward()
        reached = value.item()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0).item()
        if not guard.step(step, loss=reached, grad_norm=norm):
            break
        steps.step()
        seen += whole[0].numel()
        resume.done(step, loss=reached)
        if run is not None:
            run.log(step, loss=reached, grad_norm=norm, tokens=before + seen)
        if ranks.first and watch.seconds - shown > 15:
            shown = watch.seconds
            rate = seen / (shown - began)
            say(f"{part:4.0%}  step {step:,}  {before + seen:,} tokens  loss {reached:.3f}  {rate:,.0f}/s")
    resume.checkpoints.close()
    return net, before + seen


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
        "tie_word_embeddings": False,
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
    weights = {
        name if name == OUTER[1] else f"model.{name}": weight.detach().contiguous()
        for name, weight in net.named_parameters()
    }
    save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})
    old = folder.with_name(f"{folder.name}.old.{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def helped(plan: Plan, ranks: Ranks) -> None:
    """Be one of the other ranks: train with the first, which does all the rest."""
    ranks.words("the text is read and the n-gram judged")
    text = corpus(plan.home, plan.shape.vocab, plan.every)
    train(plan, text, None, Guard(ranks=ranks, rules=Rules(flat=False)), lambda said: None)


def main(plan: Plan, say: Callable[[str], None], ranks: Ranks | None = None) -> Judged:
    """Judge the n-gram, train the network, judge it by the same tokens, and export it if it is the better one."""
    ranks = ranks if ranks is not None and ranks.size > 1 else None
    text = corpus(plan.home, plan.shape.vocab, plan.every)
    valid = whole_steps(text.valid, plan.shape.context, plan.valid_tokens)
    per_byte = len(text.valid) / text.valid_bytes / math.log(2)
    say(f"{text.files} files: {len(text.train):,} tokens train, {len(valid):,} held out judge")
    simple = ngram_loss(text.train, valid, plan.shape.vocab)
    say(f"5-gram: loss {simple:.4f}, {simple * per_byte:.4f} bits per byte")
    budget = Budget(hours=plan.minutes / 60 * 1.5 + 0.05)
    with Store.open(plan.home.parent if plan.home.name == ".tenon" else plan.home) as store:
        params = {**asdict(plan.shape), "batch": BATCH, "minutes": plan.minutes, "tokens": plan.tokens}
        with Run.start(store, plan.id, "tinygpt", trainer="tinygpt", seed=SEED, params=params, task="language") as run:
            # The rate goes down to nothing at the end, so a loss that lies flat for a while is no reason to stop.
            guard = Guard(budget=budget, run=run, rules=Rules(flat=False), ranks=ranks)
            guard.fits(Path(__file__), BATCH, store=store, device=plan.gpu or None)
            if ranks is not None:
                ranks.words("")  # the others wait for this
            began = time.monotonic()
            net, seen = train(plan, text, run, guard, say)
            seconds = time.monotonic() - began
            guard.close()
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
                refused = sentence(f"a loss under the 5-gram's {simple:.4f}", f"{reached:.4f}", hint="train for longer")
                shutil.rmtree(plan.checkpoints)
                if ranks is not None:
                    ranks.refused(refused)  # begun again from the last checkpoint it would be no better
                raise GateError(refused)
            about = {"about": "Python source, from its standard library", "run": plan.id, "valid": asdict(judged)}
            export(net, text, plan, plan.home / "export", about)
            language.keep(store, plan.home / "export", run=plan.id)
            shutil.rmtree(plan.checkpoints)
            say(f"exported to {plan.home / 'export'}")
    return judged


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train TinyGPT on the standard library and export it for serving.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to train (default 10)")
    parser.add_argument("--tokens", type=int, default=0, help="how many tokens to see, instead of minutes")
    parser.add_argument("--home", type=Path, default=HERE / ".tenon", help="where everything is kept")
    parser.add_argument("--gpu", default="", help="refuse to begin unless a step would fit this GPU (h100-80gb ...)")
    given = parser.parse_args()

    def say(said: str) -> None:
        """Say how far it is."""
        sys.stderr.write(said + "\n")

    keep_memory()  # the logits alone are 130 MB, which every step would take from the system anew
    plan = Plan(minutes=given.minutes, tokens=given.tokens, home=given.home, gpu=given.gpu)
    with Ranks.of(os.environ) as ranks:  # alone, unless a launcher began several
        if BATCH % ranks.size:
            raise UsageError(sentence(f"a number of processes that divides {BATCH}", f"{ranks.size}", at="--nproc"))
        if ranks.first:
            main(plan, say, ranks)
        else:
            helped(plan, ranks)
