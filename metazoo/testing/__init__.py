"""The conformance suite for algorithms, built-in or from plugins."""

from metazoo.testing.check import algorithm_checks, check_algorithm

__all__ = ["algorithm_checks", "check_algorithm"]
