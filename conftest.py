"""Tests compute on one thread: on tiny models a second one only waits, and spins while it does.

It is set before torch loads, and for the commands that tests start; OMP_NUM_THREADS overrides it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
