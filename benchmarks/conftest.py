"""Benchmarks share their cases by importing one another; the package itself stays the installed one."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: the source tree has no native modules
