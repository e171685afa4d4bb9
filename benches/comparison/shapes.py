"""The tensors of models, by name and size. Needs no PyTorch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """A parameter tensor. One that is not filtered moves as a whole in every step, as under AdamW."""

    name: str
    numel: int
    filtered: bool = True

    def selected(self, update_fraction: float) -> int:
        """How many entries a step moves, ties aside."""
        return max(1, int(self.numel * update_fraction)) if self.filtered else self.numel


def transformer(vocabulary: int, positions: int, width: int, layers: int) -> list[TensorSpec]:
    """GPT-2's tensors, named as in its published weights. Vectors are not filtered, as in the MoFO authors' code."""

    def linear(name: str, inputs: int, outputs: int) -> list[TensorSpec]:
        return [TensorSpec(f"{name}.weight", inputs * outputs), TensorSpec(f"{name}.bias", outputs, filtered=False)]

    def norm(name: str) -> list[TensorSpec]:
        return [TensorSpec(f"{name}.{part}", width, filtered=False) for part in ("weight", "bias")]

    tensors = [TensorSpec("wte.weight", vocabulary * width), TensorSpec("wpe.weight", positions * width)]
    for layer in range(layers):
        tensors += norm(f"h.{layer}.ln_1")
        tensors += linear(f"h.{layer}.attn.c_attn", width, 3 * width)
        tensors += linear(f"h.{layer}.attn.c_proj", width, width)
        tensors += norm(f"h.{layer}.ln_2")
        tensors += linear(f"h.{layer}.mlp.c_fc", width, 4 * width)
        tensors += linear(f"h.{layer}.mlp.c_proj", 4 * width, width)
    return tensors + norm("ln_f")


def llama(layers: int, width: int = 4096, hidden: int = 11008, vocabulary: int = 32000) -> list[TensorSpec]:
    """The first so many layers of Llama 7B, with both its embeddings. Norms are not filtered."""
    tensors = [TensorSpec("embed_tokens.weight", vocabulary * width)]
    for layer in range(layers):
        for name in ("q", "k", "v", "o"):
            tensors.append(TensorSpec(f"layers.{layer}.self_attn.{name}_proj.weight", width * width))
        for name in ("gate", "up", "down"):
            tensors.append(TensorSpec(f"layers.{layer}.mlp.{name}_proj.weight", width * hidden))
        for name in ("input", "post_attention"):
            tensors.append(TensorSpec(f"layers.{layer}.{name}_layernorm.weight", width, filtered=False))
    return [
        *tensors,
        TensorSpec("norm.weight", width, filtered=False),
        TensorSpec("lm_head.weight", vocabulary * width),
    ]
