"""What the figures of docs/performance.md are measured with: `python -m benchmarks`, from a checkout."""
