"""`python -m metazoo` is `metazoo`."""

from metazoo.cli import main

main()
