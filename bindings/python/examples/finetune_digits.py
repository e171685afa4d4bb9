"""Fine-tunes a small transformer on digits in another view, with AdamW and with MoFO, and measures what it forgets.

    python bindings/python/examples/finetune_digits.py --plot docs/plots/finetune-digits-inverted.svg   # some minutes
    python bindings/python/examples/finetune_digits.py --view rotated
    python bindings/python/examples/finetune_digits.py --smoke                                          # some seconds

Needs PyTorch, tqdm, NumPy and matplotlib. A vision transformer is trained on handwritten digits, then fine-tuned on the
same digits rotated, inverted or mirrored, until the running mean of its training loss falls below a bound. All
optimizers are compared at that loss. The old task is the upright digits of a test set, the new one the same digits in
the other view.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm  # type: ignore[import-untyped]

import mofo.torch

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "data" / "digits.csv"
TEST_IMAGES = 397
BATCH = 32
RUNNING_MEAN = 0.95

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rotated": lambda images: images.rot90(1, (1, 2)),
    "inverted": lambda images: 1.0 - images,
    "mirrored": lambda images: images.flip(2),
}


@dataclass(frozen=True)
class Setting:
    """An optimizer with its options."""

    learning_rate: float
    update_fraction: float = 1.0

    @property
    def name(self) -> str:
        kind = "AdamW" if self.update_fraction == 1.0 else f"MoFO α = {self.update_fraction:g}"
        return f"{kind}, lr {self.learning_rate:g}"

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.update_fraction == 1.0:
            return torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=0.0)
        groups = mofo.torch.param_groups(model, update_fraction=self.update_fraction)
        return mofo.torch.MoFO(groups, lr=self.learning_rate)


SETTINGS = [
    *(Setting(rate) for rate in (1e-3, 3e-4, 1e-4, 3e-5)),
    *(Setting(rate, 0.1) for rate in (1e-3, 3e-4)),
    *(Setting(rate, 0.03) for rate in (1e-3, 3e-4)),
]


@dataclass
class Run:
    """A fine-tuning run: the losses on the way, and where it ended."""

    steps: int = 0
    reached: bool = False
    old_losses: list[float] = field(default_factory=list)
    new_losses: list[float] = field(default_factory=list)
    old_accuracy: float = 0.0
    new_accuracy: float = 0.0


class Digits:
    """Images of shape (images, 8, 8) with values in [0, 1], and labels of shape (images,), split by a seed."""

    def __init__(self, seed: int) -> None:
        table = torch.from_numpy(np.loadtxt(DIGITS, delimiter=",", dtype=np.float32))
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
        table = table[order]
        self.images = table[:, :64].view(-1, 8, 8) / 16.0
        self.labels = table[:, 64].long()

    def train(self, view: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return view(self.images[TEST_IMAGES:]), self.labels[TEST_IMAGES:]

    def test(self, view: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return view(self.images[:TEST_IMAGES]), self.labels[:TEST_IMAGES]


class VisionTransformer(nn.Module):
    """Takes images of shape (batch, 8, 8) as four patches of 16 pixels, gives logits of shape (batch, 10)."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Linear(16, width)
        self.positions = nn.Parameter(torch.randn(4, width) * 0.02)
        # Wide, so that there is something to choose from, as there is in a large model.
        layer = nn.TransformerEncoderLayer(width, 4, 8 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.view(-1, 2, 4, 2, 4).transpose(2, 3).reshape(-1, 4, 16)
        hidden: Tensor = self.norm(self.layers(self.patches(patches) + self.positions))
        logits: Tensor = self.head(hidden.flatten(1))
        return logits


def evaluate(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Loss and accuracy."""
    images, labels = data
    model.eval()
    with torch.no_grad():
        logits = model(images)
    model.train()
    return functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def losses_of_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], steps: int, seed: int
) -> Iterable[float]:
    """Trains, and gives each step's loss."""
    images, labels = data
    batches = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,), generator=batches)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item()


def pretrain(digits: Digits, seed: int, steps: int) -> nn.Module:
    torch.manual_seed(seed)
    model = VisionTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = losses_of_steps(model, optimizer, digits.train(lambda images: images), steps, seed)
    with tqdm(losses, total=steps, desc=f"seed {seed}, pre-training", leave=False) as bar:
        for loss in bar:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    return model


def finetune(model: nn.Module, digits: Digits, setting: Setting, seed: int, arguments: argparse.Namespace) -> Run:
    model = copy.deepcopy(model)
    view = VIEWS[arguments.view]
    old, new = digits.test(lambda images: images), digits.test(view)
    run = Run()
    running = None
    losses = losses_of_steps(model, setting.optimizer(model), digits.train(view), arguments.steps, seed + 1000)
    with tqdm(losses, total=arguments.steps, desc=f"seed {seed}, {setting.name}", leave=False) as bar:
        for run.steps, loss in enumerate(bar, start=1):
            running = loss if running is None else RUNNING_MEAN * running + (1.0 - RUNNING_MEAN) * loss
            run.reached = running < arguments.target
            # Evaluated at the powers of two at first: that is where most happens.
            if run.reached or run.steps % 32 == 0 or run.steps & (run.steps - 1) == 0:
                run.old_losses.append(evaluate(model, old)[0])
                run.new_losses.append(evaluate(model, new)[0])
            bar.set_postfix(loss=f"{running:.3f}", refresh=False)
            if run.reached:
                break
    run.old_accuracy, run.new_accuracy = evaluate(model, old)[1], evaluate(model, new)[1]
    return run


def spread(values: list[float], digits: int = 2) -> str:
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(runs: dict[Setting, list[Run]], before: list[tuple[float, float]], arguments: argparse.Namespace) -> None:
    seeds = f"{len(before)} seeds: mean (least to greatest)" if len(before) > 1 else "one seed"
    print(f"{arguments.view} digits, fine-tuned until the training loss is below {arguments.target:g}; {seeds}")
    print(f"before: old task's loss {spread([loss for loss, _ in before])}, accuracy {spread([a for _, a in before])}")
    print(f"{'':24}{'steps':>22}{'old loss':>24}{'old accuracy':>22}{'new accuracy':>22}")
    for setting, of_seeds in runs.items():
        missed = sum(not run.reached for run in of_seeds)
        print(
            f"{setting.name:24}"
            f"{spread([float(run.steps) for run in of_seeds], 0):>22}"
            f"{spread([run.old_losses[-1] for run in of_seeds]):>24}"
            f"{spread([run.old_accuracy for run in of_seeds]):>22}"
            f"{spread([run.new_accuracy for run in of_seeds]):>22}"
            + (f"  {missed} not there after {arguments.steps} steps: not comparable" if missed else "")
        )
    comparable = {s: r for s, r in runs.items() if all(run.reached for run in r)}
    adamw = {s: r for s, r in comparable.items() if s.update_fraction == 1.0}
    filtered = {s: r for s, r in comparable.items() if s.update_fraction < 1.0}
    for rate in sorted({s.learning_rate for s in adamw} & {s.learning_rate for s in filtered}, reverse=True):
        compare(
            f"at the same learning rate {rate:g}",
            *({s: r for s, r in group.items() if s.learning_rate == rate} for group in (adamw, filtered)),
        )
    if adamw and filtered:
        compare("each with the learning rate that forgets least", adamw, filtered)


def compare(what: str, adamw: dict[Setting, list[Run]], filtered: dict[Setting, list[Run]]) -> None:
    """One line: of how many seeds MoFO has the lower loss on the old task."""
    best_adamw, best_filtered = (
        min(group, key=lambda setting: mean(run.old_losses[-1] for run in group[setting]))
        for group in (adamw, filtered)
    )
    differences = [a.old_losses[-1] - b.old_losses[-1] for a, b in zip(adamw[best_adamw], filtered[best_filtered])]
    won = sum(difference > 0.0 for difference in differences)
    print(
        f"{what}: {best_filtered.name} forgets less than {best_adamw.name} with {won} of {len(differences)} seeds; "
        f"AdamW's old loss less MoFO's is {spread(differences)}"
    )


def plot(runs: dict[Setting, list[Run]], before: list[tuple[float, float]], arguments: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same file for the same numbers.
    plt.rcParams["svg.hashsalt"] = "mofo"
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    colours = {1.0: plt.cm.Greys, 0.1: plt.cm.Blues, 0.03: plt.cm.Oranges}
    rates = sorted({setting.learning_rate for setting in runs})
    for setting, of_seeds in runs.items():
        shade = 0.4 + 0.5 * rates.index(setting.learning_rate) / max(len(rates) - 1, 1)
        colour = colours[setting.update_fraction](shade)
        for number, run in enumerate(of_seeds):
            axes.plot(run.new_losses, run.old_losses, color=colour, linewidth=0.7, alpha=0.6)
            label = setting.name if number == 0 else None
            axes.plot(run.new_losses[-1], run.old_losses[-1], "o", color=colour, markersize=5, label=label)
    axes.axhline(mean(loss for loss, _ in before), color="black", linewidth=0.8, linestyle=":", label="before")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel(f"loss on the new task ({arguments.view} digits, test set)")
    axes.set_ylabel("loss on the old task (upright digits, test set)")
    axes.set_title(f"Fine-tuning from left to right; a dot is training loss {arguments.target:g}, one for each seed")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(arguments.plot, metadata={"Date": None} if arguments.plot.suffix == ".svg" else None)
    print(f"wrote {arguments.plot}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--view", choices=VIEWS, default="inverted", help="the new task's view of the digits")
    parser.add_argument("--seeds", type=int, default=3, help="how many times to do all of it")
    parser.add_argument("--target", type=float, default=0.1, help="training loss at which optimizers are compared")
    parser.add_argument("--steps", type=int, default=4000, help="at most so many steps of fine-tuning")
    parser.add_argument("--pretraining-steps", type=int, default=800)
    parser.add_argument("--plot", type=Path, help="file for a plot of the old task's loss against the new one's")
    parser.add_argument("--smoke", action="store_true", help="two settings, a few steps: only to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.pretraining_steps, arguments.steps, arguments.target = 1, 30, 200, 3.0
    if min(arguments.seeds, arguments.steps, arguments.pretraining_steps) < 1:
        parser.error("at least one seed and one step")
    return arguments


def main() -> None:
    arguments = parsed()
    settings = [Setting(1e-3), Setting(1e-3, 0.1)] if arguments.smoke else SETTINGS
    runs: dict[Setting, list[Run]] = {setting: [] for setting in settings}
    before = []
    for seed in range(arguments.seeds):
        digits = Digits(seed)
        model = pretrain(digits, seed, arguments.pretraining_steps)
        before.append(evaluate(model, digits.test(lambda images: images)))
        for setting in settings:
            runs[setting].append(finetune(model, digits, setting, seed, arguments))
    report(runs, before, arguments)
    if arguments.plot is not None:
        plot(runs, before, arguments)


if __name__ == "__main__":
    main()
