"""Measures metazoo's operations against what stock PyTorch offers: `python -m benchmarks.kernels`."""
