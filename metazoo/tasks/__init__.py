"""Tasks, and how they are drawn from examples."""
