"""The tensors of models, by name and shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TensorSpec:
    """A parameter tensor. One that is not filtered moves as a whole in every step, as under AdamW."""

    name: str
    numel: int
    columns: int = 4096
    """Entries of a row, which have a scale of gradients in common."""
    filtered: bool = True
    num_blocks: int = 1

    def selected(self, update_fraction: float) -> int:
        """How many entries a step moves, ties aside."""
        if not self.filtered or update_fraction == 1:
            return self.numel
        return self.num_blocks * max(1, int(self.numel // self.num_blocks * update_fraction))


def matrix(name: str, outputs: int, inputs: int) -> TensorSpec:
    """A weight matrix."""
    return TensorSpec(f"{name}.weight", outputs * inputs, columns=inputs)


def vector(name: str, numel: int) -> TensorSpec:
    """A bias or the weight of a norm: not filtered, as in the MoFO authors' code."""
    return TensorSpec(name, numel, columns=numel, filtered=False)


def one(numel: int, num_blocks: int = 1) -> list[TensorSpec]:
    """One tensor."""
    return [TensorSpec("weight", numel, num_blocks=num_blocks)]


def gpt2(layers: int, width: int = 768, vocabulary: int = 50257, positions: int = 1024) -> list[TensorSpec]:
    """GPT-2's tensors, named as in its published weights."""

    def norm(name: str) -> list[TensorSpec]:
        return [vector(f"{name}.{part}", width) for part in ("weight", "bias")]

    tensors = [matrix("wte", vocabulary, width), matrix("wpe", positions, width)]
    for layer in range(layers):
        for part, matrices in (
            ("ln_1", {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1)}),
            ("ln_2", {"mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}),
        ):
            tensors += norm(f"h.{layer}.{part}")
            for name, (outputs, inputs) in matrices.items():
                tensors.append(matrix(f"h.{layer}.{name}", outputs * width, inputs * width))
                tensors.append(vector(f"h.{layer}.{name}.bias", outputs * width))
    return tensors + norm("ln_f")


def llama(
    layers: int, width: int, key_value: int, hidden: int, vocabulary: int = 0, biases: bool = False, head: bool = False
) -> list[TensorSpec]:
    """A model of Llama's kind. `vocabulary`: of the embedding, 0 leaves it and the last norm out."""
    tensors = [matrix("embed_tokens", vocabulary, width)] if vocabulary else []
    for i in range(layers):
        for name, outputs in (("q", width), ("k", key_value), ("v", key_value), ("o", width)):
            tensors.append(matrix(f"layers.{i}.self_attn.{name}_proj", outputs, width))
            if biases and name != "o":
                tensors.append(vector(f"layers.{i}.self_attn.{name}_proj.bias", outputs))
        tensors.append(matrix(f"layers.{i}.mlp.gate_proj", hidden, width))
        tensors.append(matrix(f"layers.{i}.mlp.up_proj", hidden, width))
        tensors.append(matrix(f"layers.{i}.mlp.down_proj", width, hidden))
        tensors += [vector(f"layers.{i}.{name}_layernorm.weight", width) for name in ("input", "post_attention")]
    tensors += [vector("norm.weight", width)] if vocabulary else []
    return tensors + ([matrix("lm_head", vocabulary, width)] if head else [])


@dataclass(frozen=True)
class Model:
    """A model's tensors, given a number of layers."""

    title: str
    layers: int
    tensors: Callable[[int], list[TensorSpec]]

    def fitting(self, most: float, quick: bool) -> tuple[str, list[TensorSpec]]:
        """A title, and the tensors of as many layers as have no more than so many entries together.

        `quick`: two small layers, to see that something runs.
        """
        layers = 2 if quick else self.layers
        while layers > 1 and numel(self.tensors(layers)) > most:
            layers -= 1
        tensors = shrunk(self.tensors(layers), 64) if quick else self.tensors(layers)
        cut = "" if layers == self.layers else f", {layers} of its {self.layers} layers"
        return f"{self.title}{cut}: {len(tensors)} tensors, {numel(tensors):,} entries", tensors


MODELS = {
    "smollm2": Model("SmolLM2-135M without its embedding", 30, lambda layers: llama(layers, 576, 192, 1536)),
    "gpt2": Model("GPT-2 124M", 12, gpt2),
    "qwen2": Model("Qwen2-0.5B", 24, lambda layers: llama(layers, 896, 128, 4864, 151936, biases=True)),
    "llama3": Model("Llama-3.2-1B", 16, lambda layers: llama(layers, 2048, 512, 8192, 128256)),
}


def numel(tensors: Sequence[TensorSpec]) -> int:
    """Entries of all tensors."""
    return sum(tensor.numel for tensor in tensors)


def shrunk(tensors: Sequence[TensorSpec], times: int) -> list[TensorSpec]:
    """As many tensors, each much smaller: to see that something runs."""
    return [replace(tensor, numel=max(tensor.num_blocks, tensor.numel // times)) for tensor in tensors]
