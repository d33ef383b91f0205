"""One boto3 client a process, endpoint and region, behind thin typed calls. All block: call them in threads.

Clients are thread-safe, sessions are not, and making one costs 50–100 ms. Credentials come by the AWS chain
(environment, profile, role) when a client is made, and are refreshed by it; where they are refused, a client is made
anew, for files may hold fresh ones by then. Each call tries a few times (retry mode
"standard": backoff with jitter, a retry quota), then raises what `errors` says.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec

from penstock.connectors.s3.errors import Missing, of_one_key, refuses_credentials, translated
from penstock.engine.errors import PenstockError, Refused, Temporary

CONNECTIONS = 64
"""Connections that a client keeps: one for each thread that may call at once."""
THREADS = 32
"""Threads of this process for S3 calls: S3 answers in 20–60 ms, so 32 give some 800 small calls a second."""
ATTEMPTS = 5
"""The first try and four more: with backoff of up to 20 s that rides out a throttled minute (a guess)."""
PAUSES_S = (0.1, 0.4, 1.6)
"""Before deleting is tried again where the store had no time for some of the keys. A guess."""
CONNECT_S = 5.0
READ_S = 20.0
"""Longest silence within an answer. S3's first byte comes in 0.1–0.2 s, 99 of 100 times within 1 s."""
PAGE_KEYS = 1000
"""Most keys in one page of a listing and in one call that deletes (S3's limit)."""


class Listed(msgspec.Struct, frozen=True, gc=False):
    """One object as a listing or HEAD shows it. `etag` has its quotes; `version` None: the bucket keeps no versions."""

    key: str
    size: int
    etag: str
    version: str | None = None


class Got(msgspec.Struct, frozen=True, gc=False):
    """An object's bytes (or a range of them) and its ETag, quotes and all."""

    data: bytes
    etag: str


class Stored(msgspec.Struct, frozen=True):
    """How objects are stored: options of S3's PutObject by their meaning."""

    content_type: str = "application/octet-stream"
    sse: str | None = None
    sse_kms_key_id: str | None = None

    def options(self) -> dict[str, str]:
        found = {
            "ContentType": self.content_type,
            "ServerSideEncryption": self.sse,
            "SSEKMSKeyId": self.sse_kms_key_id,
        }
        return {name: value for name, value in found.items() if value is not None}


PLAIN = Stored()


class S3:
    """Calls of one endpoint. Every call raises `Temporary`, `SpecError` or `Refused`; which else stands there."""

    def __init__(self, endpoint: str | None, region: str | None) -> None:
        self.where = endpoint or "AWS"
        self._make = functools.partial(_make, endpoint, region)
        with translated("use S3", self.where):
            self._client = self._make()
        if not _is_aws(self._client):  # the AWS configuration names another (AWS_ENDPOINT_URL_S3, a profile)
            self.where = self._client.meta.endpoint_url

    @contextmanager
    def _call(self, what: str) -> Generator[Any]:
        """The client, for one call. One whose credentials are refused is replaced for the calls to come."""
        used = self._client
        try:
            with translated(what, self.where):
                yield used
        except PenstockError as error:
            if refuses_credentials(error):
                self._renew(used)
            raise

    def _renew(self, used: Any) -> None:
        """Where none are to be found just now (their file is being written), the client stays."""
        from boto3.session import Session

        with _making, suppress(PenstockError), translated("use S3", self.where):
            if self._client is used and Session().get_credentials() is not None:
                self._client = self._make()

    # -- looking

    def pages(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[list[Listed]]:
        """All objects whose key starts with `prefix` and sorts behind `after`, in order of keys, page by page."""
        args: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS}
        if after:
            args["StartAfter"] = after
        while True:
            with self._call(f"list s3://{bucket}/{prefix}") as s3:
                page = s3.list_objects_v2(**args)
            yield [Listed(one["Key"], one["Size"], one["ETag"]) for one in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return
            args["ContinuationToken"] = page["NextContinuationToken"]

    def version_pages(self, bucket: str, prefix: str = "") -> Iterator[list[Listed]]:
        """The same with the latest version of each object; needs the right `s3:ListBucketVersions`."""
        args: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS}
        while True:
            with self._call(f"list versions of s3://{bucket}/{prefix}") as s3:
                page = s3.list_object_versions(**args)
            latest = [one for one in page.get("Versions", ()) if one["IsLatest"]]
            yield [Listed(one["Key"], one["Size"], one["ETag"], one["VersionId"]) for one in latest]
            if not page.get("IsTruncated"):
                return
            args["KeyMarker"] = page["NextKeyMarker"]
            args["VersionIdMarker"] = page.get("NextVersionIdMarker", "")

    def versioned(self, bucket: str) -> bool:
        """Whether the bucket keeps versions. False where that may not be asked, or the store knows no versions."""
        try:
            with self._call(f"read the versioning of bucket {bucket}") as s3:
                return s3.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled"
        except (Refused, Missing):
            return False

    def head(self, bucket: str, key: str) -> Listed | None:
        """None: no such object. A HEAD has no body, so a missing bucket looks the same."""
        try:
            with self._call(f"look at s3://{bucket}/{key}") as s3:
                found = s3.head_object(Bucket=bucket, Key=key)
        except Missing:
            return None
        return Listed(key, found["ContentLength"], found["ETag"], found.get("VersionId"))

    # -- reading

    def get(
        self,
        bucket: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        etag: str | None = None,
        version: str | None = None,
    ) -> Got:
        """Bytes [start, end) of the object, the whole of it by default. `etag`: only while it is that content.

        Raises `Missing`; `NotAsExpected` where the content is another. A body that is cut short is `Temporary`.
        """
        args: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if start or end is not None:
            args["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if etag is not None:
            args["IfMatch"] = etag
        if version is not None:
            args["VersionId"] = version
        of = "" if version is None else f"version {version} of "  # to read one is a right of its own
        with self._call(f"read {of}s3://{bucket}/{key}") as s3:
            found = s3.get_object(**args)
            with found["Body"] as body:
                return Got(body.read(), found["ETag"])

    # -- writing

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        absent: bool = False,
        etag: str | None = None,
        stored: Stored = PLAIN,
    ) -> str:
        """Write the object whole; returns its ETag. `absent`: only where none is there; `etag`: only in the place of
        that content. Raises `NotAsExpected` otherwise. After `Temporary` it is uncertain whether it was written."""
        args = {**stored.options(), **_condition(absent, etag)}
        with self._call(f"write s3://{bucket}/{key}") as s3:
            return s3.put_object(Bucket=bucket, Key=key, Body=data, **args)["ETag"]

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete objects, in calls of a thousand; what is not there is no error. Raises `Refused` where the store says
        no to one of them."""
        rest = list(keys)
        for at in range(0, len(rest), PAGE_KEYS):
            left = rest[at : at + PAGE_KEYS]
            for pause in (*PAUSES_S, None):
                left, error = self._delete(bucket, left)
                if error is None:
                    break
                if pause is None or not isinstance(error, Temporary):
                    raise error
                time.sleep(pause)

    def _delete(self, bucket: str, keys: Sequence[str]) -> tuple[list[str], PenstockError | None]:
        """The keys that are still there, and why the first of them is."""
        with self._call(f"delete s3://{bucket}/{keys[0]} and others") as s3:
            objects = [{"Key": key} for key in keys]
            answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        errors: list[dict[str, str]] = answer.get("Errors") or []
        if not errors:
            return [], None
        what = f"delete s3://{bucket}/{errors[0].get('Key')}"
        return [one["Key"] for one in errors], of_one_key(errors[0].get("Code", ""), what, self.where)

    # -- large objects, in parts (5 MiB at least but for the last; 10,000 parts at most)

    def start_parts(self, bucket: str, key: str, stored: Stored = PLAIN) -> str:
        """Begin an upload in parts; returns its id."""
        with self._call(f"begin s3://{bucket}/{key}") as s3:
            return s3.create_multipart_upload(Bucket=bucket, Key=key, **stored.options())["UploadId"]

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        """Part `number` (from 1); returns its ETag. The same number again replaces it. Raises `Missing`."""
        with self._call(f"write part {number} of s3://{bucket}/{key}") as s3:
            return s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=data)["ETag"]

    def end_parts(
        self,
        bucket: str,
        key: str,
        upload: str,
        etags: Sequence[str],
        *,
        absent: bool = False,
        etag: str | None = None,
    ) -> str:
        """Make the object of its parts, under the conditions of `put`; returns its ETag. Raises as `put`, `Missing`."""
        parts = [{"PartNumber": number, "ETag": one} for number, one in enumerate(etags, 1)]
        with self._call(f"complete s3://{bucket}/{key}") as s3:
            return s3.complete_multipart_upload(
                Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **_condition(absent, etag)
            )["ETag"]

    def uploads(self, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
        """Key and id of each upload in parts that has not ended; needs the right `s3:ListBucketMultipartUploads`."""
        args: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        while True:
            with self._call(f"list uploads to s3://{bucket}/{prefix}") as s3:
                page = s3.list_multipart_uploads(**args)
            yield from ((one["Key"], one["UploadId"]) for one in page.get("Uploads", ()))
            if not page.get("IsTruncated"):
                return
            args["KeyMarker"] = page["NextKeyMarker"]
            args["UploadIdMarker"] = page.get("NextUploadIdMarker", "")

    def drop_parts(self, bucket: str, key: str, upload: str) -> None:
        """Give an upload up; what it holds is no longer paid for. Raises `Missing`."""
        with self._call(f"give up s3://{bucket}/{key}") as s3:
            s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


def _condition(absent: bool, etag: str | None) -> dict[str, str]:
    if absent:
        return {"IfNoneMatch": "*"}
    return {} if etag is None else {"IfMatch": etag}


def _make(endpoint: str | None, region: str | None) -> Any:
    """Stores that merely speak S3, whether the settings name them or the AWS configuration does: bucket names in the
    path, and no checksums that only AWS knows."""
    from boto3.session import Session
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    others = config.merge(
        Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
    )
    session = Session()  # of its own: the default one is shared, and not made for threads
    if endpoint is None and _is_aws(made := session.client("s3", region_name=region, config=config)):
        return made
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=others)


def _is_aws(made: Any) -> bool:
    host = urlsplit(made.meta.endpoint_url).hostname or ""
    return "amazonaws." in host or host.endswith(".api.aws")


_making = threading.Lock()


def client(endpoint: str | None = None, region: str | None = None) -> S3:
    """This process's client of that endpoint (None: AWS, or what the AWS configuration names). Raises `SpecError`."""
    with _making:
        return _client(endpoint, region)


@functools.lru_cache(maxsize=16)
def _client(endpoint: str | None, region: str | None) -> S3:
    return S3(endpoint, region)


def forget() -> None:
    """Drop the clients of this process: the next ones find the credentials anew."""
    _client.cache_clear()


@functools.cache
def threads() -> ThreadPoolExecutor:
    """Where this process's S3 calls run: `loop.run_in_executor(threads(), s3.put, …)`. A call there must not wait for
    another one there."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
