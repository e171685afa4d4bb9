"""What is compared: things that make a step, over and over, on buffers of their own."""

from abc import ABC, abstractmethod

from torch import Tensor

from .buffers import LARGE, Role, allocate, closest_starts
from .workload import Gradients, Types, make_parameters

LEARNING_RATE = 1e-4
BETA1 = 0.9
BETA2 = 0.999
EPSILON = 1e-8
WEIGHT_DECAY = 0.0  # As in all scripts of the MoFO authors, whose code would need one more pass for it.


class Contender(ABC):
    """Something that makes a step of a workload."""

    slow = False
    """Takes part in few rounds only."""

    def __init__(self, gradients: Gradients, types: Types) -> None:
        self.gradients = gradients
        self.workload = gradients.workload
        self.types = types

    @abstractmethod
    def load(self, step: int) -> None:
        """Takes the gradients of that step. Not timed."""

    @abstractmethod
    def step(self) -> None:
        """Makes one step. Timed."""

    @abstractmethod
    def buffers(self) -> list[Tensor]:
        """All that it keeps from step to step, scalars aside."""

    def settle(self) -> None:
        """Keeps the books after a step. Not timed."""

    def close(self) -> None:
        """Frees what Python does not."""


class Optimizer(Contender):
    """A contender that has parameters, and moments, which start at zero; each a list with one entry per tensor."""

    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]

    def __init__(self, gradients: Gradients, types: Types, update_fraction: float) -> None:
        super().__init__(gradients, types)
        self.update_fraction = update_fraction
        self.parameters = make_parameters(self.workload)

    def allocate_moments(self) -> None:
        """Sets the moments up from the common allocator, for those that do not bring their own."""
        self.exp_avg = allocate(Role.EXP_AVG, self.workload.numels, self.types.moments)
        self.exp_avg_sq = allocate(Role.EXP_AVG_SQ, self.workload.numels, self.types.moments)

    def buffers(self) -> list[Tensor]:
        return [*self.parameters, *self.exp_avg, *self.exp_avg_sq]

    def closest_starts(self) -> int | None:
        """The least distance, modulo `buffers.PERIOD`, of two buffers of one large tensor, in bytes."""
        distances = []
        for of_tensor in zip(self.parameters, self.gradients.of_step(0), self.exp_avg, self.exp_avg_sq, strict=True):
            if min(buffer.nbytes for buffer in of_tensor) >= LARGE:
                distances.append(closest_starts(of_tensor))
        return min(distances, default=None)
