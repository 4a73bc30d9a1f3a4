"""The headers of ``include/`` as cffi sees them: made at build time from their marked parts."""

from typing import Any

ffi: Any
lib: Any
