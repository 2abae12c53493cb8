"""The lane of ahead-of-time compilation: real dims, no GPU. Not in the process of the interpreter."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # tests import their helpers as kernels.*

collect_ignore_glob = ["test_*.py"] if os.environ.get("TRITON_INTERPRET") == "1" else []
