"""Puts the repository's root on the path: the examples are run from it, as `python -m examples.…`."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)
