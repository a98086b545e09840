"""The conformance suite for algorithms, built-in or from plugins."""

from metazoo.testing.check import check_algorithm

__all__ = ["check_algorithm"]
