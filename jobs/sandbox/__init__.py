"""`penstock sandbox`: a provider to rehearse jobs against, without keys. Nobody is billed.

It speaks chat completions and Messages with their true headers and failures, and counts what was paid for twice.
"""

from __future__ import annotations

from penstock.jobs.sandbox.run import running_sandbox, serve
from penstock.jobs.sandbox.settings import PORT, Behaviour, Faults, Settings, parse_faults, read_settings

__all__ = ["PORT", "Behaviour", "Faults", "Settings", "parse_faults", "read_settings", "running_sandbox", "serve"]
