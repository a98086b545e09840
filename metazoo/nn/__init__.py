"""Helpers for networks: tasks in parallel, BatchNorm of batch statistics, augmentation."""
