"""`s3://bucket/key?endpoint=…&region=…`: how one text names an object, or a prefix, of any S3-compatible store."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from penstock.engine.errors import SpecError

SCHEME = "s3://"
_OPTIONS = frozenset({"endpoint", "region"})
_PLAIN = "/=.-_~+:@, "
"""Characters of a key that stand in a URL as they are; a `?`, `#` or `%` in a key is written `%3F`, …"""


class Where(msgspec.Struct, frozen=True):
    """endpoint None: AWS, or what the AWS configuration names."""

    bucket: str
    key: str = ""
    endpoint: str | None = None
    region: str | None = None

    @property
    def url(self) -> str:
        asked = {"endpoint": self.endpoint, "region": self.region}
        query = urlencode({name: value for name, value in asked.items() if value is not None}, safe=":/")
        return f"{SCHEME}{self.bucket}/{quote(self.key, safe=_PLAIN)}" + (f"?{query}" if query else "")

    def at(self, key: str) -> Where:
        """Another key of the same bucket."""
        return msgspec.structs.replace(self, key=key)


def parsed(url: str) -> Where:
    """Raises `SpecError` where it names no bucket or has an option that is not known."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme != "s3" or not parts.netloc or parts.fragment:
        raise SpecError(f"{url}: not an S3 URL. Write s3://bucket/prefix, with ?endpoint=http://… for other stores.")
    if unknown := sorted(set(options) - _OPTIONS):
        raise SpecError(f"{url}: {unknown[0]} is no option of an S3 URL. There are endpoint and region.")
    return Where(
        parts.netloc, unquote(parts.path.lstrip("/")), options.get("endpoint") or None, options.get("region") or None
    )
