"""The parts of the comparison with PyTorch: memory, workloads, contenders, their checks, rounds and figures."""
