"""`s3://bucket/key?endpoint=…&region=…&sse=…`: how a text names an object, or a prefix, of any S3-compatible store."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from penstock.engine.errors import SpecError

SCHEME = "s3://"
OPTIONS = ("endpoint", "region", "sse", "sse_kms_key_id")
SSE = ("AES256", "aws:kms")
_PLAIN = "/=.-_~+:@, "
"""Characters of a key that stand in a URL as they are; a `?`, `#` or `%` in a key is written `%3F`, …"""


class Where(msgspec.Struct, frozen=True):
    """endpoint None: AWS, or what the AWS configuration names. sse: how objects are encrypted that are written there;
    None: as the bucket does it."""

    bucket: str
    key: str = ""
    endpoint: str | None = None
    region: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None

    @property
    def url(self) -> str:
        """For whoever reads: how it is encrypted the store knows."""
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
    if unknown := sorted(set(options) - {*OPTIONS}):
        raise SpecError(f"{url}: {unknown[0]} is no option of an S3 URL. There are {', '.join(OPTIONS)}.")
    return Where(parts.netloc, unquote(parts.path.lstrip("/")), *(options.get(name) or None for name in OPTIONS))
