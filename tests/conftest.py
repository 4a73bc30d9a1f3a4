"""What all tests share: where the oracles are, and how hard Hypothesis tries.

``HYPOTHESIS_PROFILE`` is ``dev`` (default), ``ci`` or ``nightly``. With ``CI=true`` every profile
but the nightly one is derandomised, so that a run says something about the commit alone.
"""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "oracle"))

_on_ci = os.environ.get("CI", "").lower() == "true"
settings.register_profile("dev", max_examples=100, deadline=None, derandomize=_on_ci)
settings.register_profile(
    "ci", max_examples=500, deadline=None, derandomize=_on_ci, print_blob=True
)
settings.register_profile("nightly", max_examples=20_000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
