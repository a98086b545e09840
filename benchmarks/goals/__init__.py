"""Measures the goals for a GPU against what stock PyTorch takes there: `python -m benchmarks.goals`."""
