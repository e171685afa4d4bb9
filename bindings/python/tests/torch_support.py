"""What the tests of mofo.torch share: a small transformer, and the bits of tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 17
LENGTH = 12


class Transformer(nn.Module):
    """A causal language model of two layers; the head is tied to the embedding."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, width)
        self.wpe = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device, dtype=self.wte.weight.dtype)
        hidden = self.wte(tokens) + self.wpe.weight[:length]
        return self.head(self.ln_f(self.layers(hidden, mask=mask, is_causal=True)))


def transformer(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer()


def tokens(step: int) -> Tensor:
    """A batch of sequences that count upwards by 1, 2 or 3, another one at each step."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(VOCABULARY, (8, 1), generator=generator)
    stride = torch.randint(1, 4, (8, 1), generator=generator)
    return (start + stride * torch.arange(LENGTH)) % VOCABULARY


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch)[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """The losses of these steps."""
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, tokens(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def bits(tensor: Tensor) -> np.ndarray:
    """The bit patterns in memory order, as the library sees them: uint32 or uint16."""
    flat = tensor.detach().cpu().as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    as_integers = flat.view(torch.int32 if tensor.element_size() == 4 else torch.int16).numpy()
    return as_integers.view(np.uint32 if tensor.element_size() == 4 else np.uint16)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(bits(one), bits(other))


def same_parameters(one: nn.Module, other: nn.Module) -> bool:
    pairs = list(zip(one.parameters(), other.parameters()))
    assert pairs
    return all(same_bits(a, b) for a, b in pairs)


def reference() -> ModuleType:
    """tests/reference/reference.py: a step in NumPy, written from docs/numerics.md alone."""
    folder = str(Path(__file__).resolve().parents[3] / "tests" / "reference")
    if folder not in sys.path:
        sys.path.append(folder)
    import reference as module

    return module
