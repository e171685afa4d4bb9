"""The parts of the benchmarks: memory, tensors, gradients, contenders, rounds, figures, tables, and the commands."""
