"""`penstock demo`: the whole thing on this machine, in three acts, without keys.

Act one (`rehearsal`) runs all tiers against the sandbox, is killed in the middle and goes on. Act two
(`versions`) evaluates models of planted quality, and has a worse version of one taken back. Meanwhile the vLLM extra
installs (`extra`). Act three (`real`) runs in that environment: a small real model labels topics, scored against true
labels, and is set beside pretended ones on the same rows.
"""

from __future__ import annotations

from penstock.jobs.demo.play import main

__all__ = ["main"]
