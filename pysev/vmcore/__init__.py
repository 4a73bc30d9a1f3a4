"""The core that kdump writes: what the crash kernel reads, as a file for other people's tools."""
