"""The training steps that bench/fit.py predicts and measures: four functions each, as a user's train.py has them.

Every family that the prediction promises is here: dense nets, convolutions, transformers (causal, encoder, with shared
heads), recurrent nets, mixed precision, checkpoints, frozen weights, accumulation of optimisers' state in all their
forms. Sizes are such that a processor takes seconds for all of them at `small`, and a GPU uses gigabytes at `large`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One training step: what a train.py declares, and its batch on a processor and on a GPU."""

    family: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Any]
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    small: int
    large: int


# ── nets ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def mlp(width: int, depth: int, *, dropout: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(x + self.norms[1](self.second(y)))


def residual(width: int, depth: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 7, stride=2, padding=3),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        *(Residual(width) for _ in range(depth)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


class Depthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.mix = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mix(self.norm(self.spatial(x)))


def depthwise(width: int, depth: int) -> nn.Module:
    body = (Depthwise(width) for _ in range(depth))
    return nn.Sequential(
        nn.Conv2d(3, width, 4, stride=4), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


class UNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)])
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * width, width, 2, stride=2), nn.Conv2d(2 * width, 3, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = functional.relu(self.down[0](x))
        second = functional.relu(self.down[1](functional.max_pool2d(first, 2)))
        up = self.up[0](functional.relu(self.middle(second)))
        return self.up[1](torch.cat([first, up], 1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, shared: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.shared, self.dropout = heads, shared, dropout
        self.query = nn.Linear(width, width)
        self.rest = nn.Linear(width, 2 * width * shared // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        each = width // self.heads
        query = self.query(x).view(rows, length, self.heads, each).transpose(1, 2)
        key, value = self.rest(x).view(rows, length, 2, self.shared, each).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.shared != self.heads,
        )
        return self.out(mixed.transpose(1, 2).reshape(rows, length, width))


class Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, *, modern: bool, dropout: float) -> None:
        super().__init__()
        norm = partial(nn.RMSNorm, width) if modern else partial(nn.LayerNorm, width)
        self.before, self.between, self.drop = norm(), norm(), nn.Dropout(dropout)
        self.attention = Attention(width, heads, heads // 4 if modern else heads, dropout)
        self.mix = (
            Gated(width)
            if modern
            else nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop(self.attention(self.before(x)))
        return x + self.drop(self.mix(self.between(x)))


class GPT(nn.Module):
    def __init__(
        self,
        *,
        words: int = 8_192,
        width: int = 256,
        depth: int = 4,
        heads: int = 8,
        modern: bool = False,
        dropout: float = 0.0,
        tied: bool = False,
        again: bool = False,
    ) -> None:
        super().__init__()
        self.again = again
        self.embed, self.place = nn.Embedding(words, width), nn.Embedding(1_024, width)
        self.blocks = nn.ModuleList(Block(width, heads, modern=modern, dropout=dropout) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words) + self.place(torch.arange(words.shape[1], device=words.device))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return self.head(self.norm(x))


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.body, self.head = (
            nn.Embedding(1_000, width),
            nn.GRU(width, width, 2, batch_first=True),
            nn.Linear(width, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(x))[0][:, -1])


class ViT(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, stride=8)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class Lora(nn.Module):
    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def frozen() -> nn.Module:
    model = GPT()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.blocks:
        block.attention.query = Lora(block.attention.query, 8)
    return model


# ── BERT-large as it was in 2022 ─────────────────────────────────────────────────────────────────────────────────────


class Softmax(torch.autograd.Function):
    """A softmax that keeps what came in beside what came out, as PyTorch did up to 1.10 (derivatives.yaml)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.softmax(x, -1)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        x, y = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(grad, y, -1, x.dtype)


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms, self.drop = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)]), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        shape = (rows, length, self.heads, width // self.heads)
        query, key, value = (part(x).view(shape).permute(0, 2, 1, 3) for part in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2))
        scores = scores / 8.0
        shares = self.drop(Softmax.apply(scores + mask))
        mixed = torch.matmul(shares, value).permute(0, 2, 1, 3).contiguous().view(rows, length, width)
        x = self.norms[0](self.drop(self.out(mixed)) + x)
        return self.norms[1](self.drop(self.down(functional.gelu(self.up(x)))) + x)


class Bert(nn.Module):
    def __init__(self, width: int = 1_024, depth: int = 24, heads: int = 16) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (nn.Embedding(size, width) for size in (30_522, 512, 2))
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
        self.layers = nn.ModuleList(BertLayer(width, heads) for _ in range(depth))
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        x = self.drop(self.norm(self.words(words) + self.kinds(torch.zeros_like(words)) + self.places(places)))
        mask = (1.0 - torch.ones(words.shape, device=words.device)[:, None, None, :]) * -10_000.0
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.drop(torch.tanh(self.pool(x[:, 0]))))


def kept(optimizer: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    """Return an optimiser that fills gradients with zeros instead of dropping them, as loops did then."""

    def with_zeros(model: nn.Module) -> Any:
        made = optimizer(model)
        made.zero_grad = lambda set_to_none=False: [p.grad.zero_() for p in model.parameters() if p.grad is not None]
        return made

    return with_zeros


def in_fp16(model: nn.Module, batch: Any) -> torch.Tensor:
    with torch.autocast("cuda", dtype=torch.float16):
        return classes(model, batch)


# ── optimisers ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Adam8(torch.optim.Optimizer):
    """Adam with both moments in one byte a value and a scale for each 256, as bitsandbytes keeps them."""

    def __init__(self, parameters: Any, lr: float = 1e-3) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, grad = self.state[parameter], parameter.grad
                if not state:
                    for name in ("first", "second"):
                        state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
                        state[f"{name}_scale"] = parameter.new_zeros(-(-parameter.numel() // 256))
                moment = state["first"].float().mul_(0.9).add_(grad, alpha=0.1)
                square = state["second"].float().mul_(0.99).addcmul_(grad, grad, value=0.01)
                parameter.addcdiv_(moment, square.sqrt_().add_(1e-8), value=-group["lr"])
                state["first"].copy_(moment)
                state["second"].copy_(square)


def by(kind: Any, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: kind([p for p in model.parameters() if p.requires_grad], lr=1e-3, **options)


adamw, sgd = by(torch.optim.AdamW), by(torch.optim.SGD)


# ── data and losses ──────────────────────────────────────────────────────────────────────────────────────────────────


def rows(width: int) -> Callable[[int], Any]:
    return lambda size: (torch.randn(size, width), torch.randint(0, 10, (size,)))


def images(side: int) -> Callable[[int], Any]:
    return lambda size: (torch.randn(size, 3, side, side), torch.randint(0, 10, (size,)))


def texts(length: int, words: int) -> Callable[[int], Any]:
    return lambda size: (torch.randint(0, words, (size, length)), torch.randint(0, words, (size, length)))


def labels(length: int) -> Callable[[int], Any]:
    return lambda size: (torch.randint(0, 1_000, (size, length)), torch.randint(0, 10, (size,)))


def classes(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def words(model: nn.Module, batch: Any) -> torch.Tensor:
    said = model(batch[0])
    return functional.cross_entropy(said.view(-1, said.shape[-1]), batch[1].view(-1))


def rebuilt(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[0])


def last(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0].contiguous(memory_format=torch.channels_last)), batch[1])


def mixed(loss: Callable[[nn.Module, Any], torch.Tensor]) -> Callable[[nn.Module, Any], torch.Tensor]:
    def in_bf16(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast(batch[0].device.type, dtype=torch.bfloat16):
            return loss(model, batch)

    return in_bf16


def _net(family: str, model: Any, optimizer: Any, batch: Any, loss: Any, sizes: tuple[int, int]) -> Config:
    return Config(
        family=family, model=model, optimizer=optimizer, batch=batch, loss=loss, small=sizes[0], large=sizes[1]
    )


_dense = partial(_net, "mlp", batch=rows(512), loss=classes, sizes=(256, 262_144))
_image = partial(_net, "cnn", batch=images(64), loss=classes, sizes=(8, 1_024))
_text = partial(_net, "transformer", batch=texts(128, 8_192), loss=words, sizes=(4, 256))

CONFIGS: dict[str, Config] = {
    "mlp-sgd": _dense(model=lambda: mlp(512, 4), optimizer=sgd),
    "mlp-momentum": _dense(model=lambda: mlp(512, 4), optimizer=by(torch.optim.SGD, momentum=0.9)),
    "mlp-adam-loop": _dense(model=lambda: mlp(512, 4), optimizer=by(torch.optim.Adam, foreach=False)),
    "mlp-adamw-foreach": _dense(model=lambda: mlp(512, 12), optimizer=by(torch.optim.AdamW, foreach=True)),
    "mlp-adamw-fused": _dense(model=lambda: mlp(512, 12), optimizer=by(torch.optim.AdamW, fused=True)),
    "mlp-rmsprop": _dense(model=lambda: mlp(512, 4), optimizer=by(torch.optim.RMSprop)),
    "mlp-adagrad": _dense(model=lambda: mlp(512, 4), optimizer=by(torch.optim.Adagrad)),
    "mlp-adafactor": _dense(model=lambda: mlp(512, 4), optimizer=by(torch.optim.Adafactor)),
    "mlp-adam8": _dense(model=lambda: mlp(512, 8), optimizer=by(Adam8)),
    "mlp-dropout": _dense(model=lambda: mlp(512, 6, dropout=0.2), optimizer=adamw),
    "mlp-bf16": _dense(model=lambda: mlp(512, 6), optimizer=adamw, loss=mixed(classes)),
    "cnn-residual-sgd": _image(model=lambda: residual(32, 4), optimizer=by(torch.optim.SGD, momentum=0.9)),
    "cnn-residual-adamw": _image(model=lambda: residual(32, 6), optimizer=adamw),
    "cnn-residual-bf16": _image(model=lambda: residual(32, 4), optimizer=adamw, loss=mixed(classes)),
    "cnn-channels-last": _image(
        model=lambda: residual(32, 4).to(memory_format=torch.channels_last), optimizer=adamw, loss=last
    ),
    "cnn-depthwise": _image(model=lambda: depthwise(48, 4), optimizer=adamw),
    "cnn-unet": _image(model=lambda: UNet(24), optimizer=adamw, loss=rebuilt),
    "gpt-fp32": _text(model=GPT, optimizer=adamw),
    "gpt-bf16": _text(model=GPT, optimizer=adamw, loss=mixed(words)),
    "gpt-bf16-weights": _text(model=lambda: GPT().bfloat16(), optimizer=adamw),
    "gpt-dropout": _text(model=lambda: GPT(dropout=0.1), optimizer=adamw, loss=mixed(words)),
    "gpt-checkpoint": _text(model=lambda: GPT(depth=6, again=True), optimizer=adamw),
    "gpt-checkpoint-bf16": _text(model=lambda: GPT(depth=6, again=True), optimizer=adamw, loss=mixed(words)),
    "gpt-tied": _text(model=lambda: GPT(tied=True), optimizer=by(torch.optim.AdamW, fused=True), loss=mixed(words)),
    "gpt-modern": _text(model=lambda: GPT(modern=True), optimizer=adamw, loss=mixed(words)),
    "gpt-modern-fp32": _text(model=lambda: GPT(modern=True), optimizer=by(torch.optim.Adafactor)),
    "gpt-deep-narrow": _text(model=lambda: GPT(width=128, depth=12), optimizer=adamw, loss=mixed(words)),
    "gpt-lora": _text(model=frozen, optimizer=adamw, loss=mixed(words)),
    "vit-dropout": _net("transformer", lambda: ViT(128, 4), adamw, images(64), classes, (16, 1_024)),
    "vit-bf16": _net("transformer", lambda: ViT(128, 4), adamw, images(64), mixed(classes), (16, 1_024)),
    "gru": _net("recurrent", lambda: Recurrent(128), adamw, labels(64), classes, (16, 1_024)),
}

_bert = partial(_net, "published", Bert, batch=labels(512), sizes=(4, 4))
_loop = kept(by(torch.optim.AdamW, foreach=False))
PUBLISHED: dict[str, Config] = {
    "bert": _bert(optimizer=_loop, loss=classes),
    "bert-fp16": _bert(optimizer=_loop, loss=in_fp16),
    "bert-adafactor": _bert(optimizer=kept(by(torch.optim.Adafactor)), loss=classes),
    "bert-adafactor-fp16": _bert(optimizer=kept(by(torch.optim.Adafactor)), loss=in_fp16),
}
