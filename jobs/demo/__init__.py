"""`penstock demo`: the whole thing on this machine, in two acts, without keys.

Act one (`rehearsal`) runs all tiers against the sandbox, is killed in the middle and goes on. Meanwhile the vLLM extra
installs (`extra`). Act two (`real`) runs in that environment: a small real model labels topics, scored against true
labels.
"""

from __future__ import annotations

from penstock.jobs.demo.play import main

__all__ = ["main"]
