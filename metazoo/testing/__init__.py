"""The conformance suite: what every algorithm, built-in or not, must hold to."""

from metazoo.testing.check import check_algorithm

__all__ = ["check_algorithm"]
