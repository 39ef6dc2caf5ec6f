"""``python -m fr_bench`` is ``fr-bench``."""

import sys

from fr_bench.cli import console

if __name__ == "__main__":  # the spawned workers import this module under another name
    sys.exit(console())
