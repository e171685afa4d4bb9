"""mofo, through its C ABI."""

import ctypes
from ctypes import byref, c_uint64, c_void_p

import torch

from libmofo import (
    CPU_TIERS,
    MOFO_DTYPE_BF16,
    MOFO_DTYPE_F32,
    MOFO_ROUNDING_NEAREST,
    MOFO_ROUNDING_STOCHASTIC,
    Library,
    Options,
    StepArgs,
    StepReport,
    TensorDescription,
    TensorInfo,
)

from .buffers import at_address
from .contender import BETA1, BETA2, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Optimizer
from .workload import Gradients, TensorSpec

DTYPES = {torch.float32: MOFO_DTYPE_F32, torch.bfloat16: MOFO_DTYPE_BF16}
ROUNDINGS = {"nearest": MOFO_ROUNDING_NEAREST, "stochastic": MOFO_ROUNDING_STOCHASTIC}


class Mofo(Optimizer):
    """mofo through its C ABI, all tensors in one optimizer. With an update fraction of 1 it is AdamW."""

    def __init__(self, library: Library, gradients: Gradients, update_fraction: float, threads: int, tier: int) -> None:
        super().__init__(gradients, gradients.workload.types, update_fraction)
        self.library = library
        self._step = library.functions.mofo_step
        self._optimizer = self._create(threads, tier)
        self._indices = [self._add(tensor) for tensor in self.workload.tensors]

        self.report = StepReport()
        self.blocks_estimated = 0
        self.estimates_failed = 0
        self._args = StepArgs()
        library.check(library.functions.mofo_step_args_init(byref(self._args), ctypes.sizeof(self._args)))
        self._args.report = ctypes.pointer(self.report)
        self._args.report_size = ctypes.sizeof(self.report)
        self._args_pointer = ctypes.pointer(self._args)

        states = [self._state(index) for index in self._indices]
        self.exp_avg = [at_address(state.exp_avg, state.numel, self.types.moments) for state in states]
        self.exp_avg_sq = [at_address(state.exp_avg_sq, state.numel, self.types.moments) for state in states]
        for moment in [*self.exp_avg, *self.exp_avg_sq]:
            moment.zero_()  # The first touch is the same for all contenders.

    def _create(self, threads: int, tier: int) -> c_void_p:
        c = self.library.functions
        options = Options()
        self.library.check(c.mofo_options_init(byref(options), ctypes.sizeof(options)))
        options.learning_rate = LEARNING_RATE
        options.beta1 = BETA1
        options.beta2 = BETA2
        options.epsilon = EPSILON
        options.weight_decay = WEIGHT_DECAY
        options.update_fraction = self.update_fraction
        options.state_dtype = DTYPES[self.types.moments]
        options.rounding = ROUNDINGS[self.types.rounding]
        options.num_threads = threads
        options.cpu_tier = tier
        optimizer = c_void_p()
        self.library.check(c.mofo_create(byref(options), byref(optimizer)))
        return optimizer

    def _add(self, tensor: TensorSpec) -> c_uint64:
        c = self.library.functions
        description = TensorDescription()
        self.library.check(c.mofo_tensor_init(byref(description), ctypes.sizeof(description)))
        description.name = tensor.name.encode()
        description.numel = tensor.numel
        description.param_dtype = description.grad_dtype = DTYPES[self.types.parameter]
        if not tensor.filtered:
            description.update_fraction = 1.0
        index = c_uint64()
        self.library.check(c.mofo_add_tensor(self._optimizer, byref(description), byref(index)))
        return index

    def _state(self, index: c_uint64) -> TensorInfo:
        info = TensorInfo()
        c = self.library.functions
        self.library.check(c.mofo_tensor_state(self._optimizer, index, byref(info), ctypes.sizeof(info)))
        return info

    def load(self, step: int) -> None:
        bind = self.library.functions.mofo_bind_tensor
        gradients = self.gradients.of_step(step)
        for index, parameter, gradient in zip(self._indices, self.parameters, gradients, strict=True):
            self.library.check(bind(self._optimizer, index, parameter.data_ptr(), gradient.data_ptr()))

    def step(self) -> None:
        status = self._step(self._optimizer, self._args_pointer)
        if status != 0:
            self.library.check(status)

    def settle(self) -> None:
        self.blocks_estimated += self.report.blocks_estimated
        self.estimates_failed += self.report.estimates_failed

    def cpu_tier(self) -> str:
        """The name of the tier that the library chose."""
        tier = self.library.functions.mofo_cpu_tier(self._optimizer)
        return CPU_TIERS.get(tier, f"tier {tier}")

    def close(self) -> None:
        self.exp_avg = self.exp_avg_sq = []
        self.library.functions.mofo_destroy(self._optimizer)
        self._optimizer = c_void_p()
