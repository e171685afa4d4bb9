"""The comparison on an NVIDIA GPU, and what else is measured there."""
