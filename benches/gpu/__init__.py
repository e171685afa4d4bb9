"""Parts of `compare_torch_cuda.py`."""
