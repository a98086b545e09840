"""The soak: thousands of damaged inputs, kills, full disks, bad servers and hostile plugins, in one table.

`make soak` runs it. A subject (`subject.py`) is a kind of trouble; `runner.py` gives each case of it
a random generator, an empty folder, and a limit of memory and time. The outcome is an answer, one
`MetazooError`, or a fault.
"""

import sys
from pathlib import Path

# What the tests share is imported by its bare name, as in the tests.
sys.path.insert(1, str(Path(__file__).parents[1]))
