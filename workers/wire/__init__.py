"""The providers' wire formats. A protocol is a row of this table: build the request, read the response."""

from penstock.engine.catalog import Protocol
from penstock.workers.wire import anthropic, openai
from penstock.workers.wire.base import Bucket, LimitHeaders, Read, Wire

TABLE: dict[Protocol, Wire] = {"openai": openai.WIRE, "anthropic": anthropic.WIRE}

__all__ = ["TABLE", "Bucket", "LimitHeaders", "Read", "Wire"]
