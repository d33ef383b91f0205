"""Buckets that keep versions: a run reads the version that it planned, whatever becomes of the object meanwhile.

Against a real server that keeps them, and a user of it who has few rights.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from penstock.connectors.base import Later
from penstock.connectors.s3 import client
from penstock.connectors.s3.objects import NO_VERSION, pinned_by
from penstock.connectors.s3.source import S3Source
from penstock.connectors.settings import S3Source as Settings
from penstock.connectors.writing.tables import read_records
from penstock.engine.errors import BadRecord, Refused
from penstock.engine.plan import Plan, Split
from penstock.jobs.dev import s3 as dev_s3
from penstock.jobs.dev.fetch import MissingTool
from penstock.jobs.dev.s3 import Keys, S3Server
from tests.connectors.s3_world import PLAN, World, fill, numbers

pytestmark = pytest.mark.s3


class Versioned(S3Server):
    """Buckets may keep versions there, and users beside the root one have the rights that a bucket's policy names."""

    def environment(self) -> Mapping[str, str]:
        folders = {name: self.folder / name.lower() for name in ("VGW_VERSIONING_DIR", "VGW_IAM_DIR")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        return {**super().environment(), **{name: str(folder) for name, folder in folders.items()}}

    def user(self) -> Keys:
        made = Keys.new()
        admin = [str(dev_s3.binary()), "admin", "--access", self.keys.access_key, "--secret", self.keys.secret_key]
        who = ["--access", made.access_key, "--secret", made.secret_key, "--role", "user"]
        subprocess.run([*admin, "--endpoint-url", self.endpoint, "create-user", *who], check=True, capture_output=True)
        return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versioned]:
    made = Versioned(tmp_path_factory.mktemp("versions"))
    try:
        made.start()
    except MissingTool as error:
        pytest.skip(str(error))
    yield made
    made.kill()


class Bucket:
    """One that keeps versions."""

    def __init__(self, server: Versioned) -> None:
        self.name = f"versions-{secrets.token_hex(4)}"
        self.endpoint = server.endpoint
        self.s3: Any = server.client()
        self.s3.create_bucket(Bucket=self.name)

    def keep_versions(self, status: str = "Enabled") -> None:
        self.s3.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": status})

    def put(self, key: str, *values: int) -> str:
        """Returns the version."""
        body = b"".join(b'{"n":%d}\n' % value for value in values)
        return self.s3.put_object(Bucket=self.name, Key=key, Body=body).get("VersionId", NO_VERSION)

    def delete(self, key: str, **which: str) -> None:
        self.s3.delete_object(Bucket=self.name, Key=key, **which)

    def allow(self, who: Keys, *actions: str) -> None:
        arn = f"arn:aws:s3:::{self.name}"
        grant = {"Effect": "Allow", "Principal": {"AWS": [who.access_key]}}
        of_bucket = [one for one in actions if "Bucket" in one]
        of_objects = [one for one in actions if "Bucket" not in one]
        statements = [
            {**grant, "Action": some, "Resource": where}
            for some, where in ((of_bucket, arn), (of_objects, f"{arn}/*"))
            if some
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.s3.put_bucket_policy(Bucket=self.name, Policy=policy)

    def source(self) -> S3Source:
        return S3Source(Settings(self.name, "", None, self.endpoint, "us-east-1"))


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Callable[[Keys], None]:
    def as_user(keys: Keys) -> None:
        for name, value in keys.environment.items():
            monkeypatch.setenv(name, value)
        client.forget()

    return as_user


@pytest.fixture
def bucket(server: Versioned, login: Callable[[Keys], None]) -> Iterator[Bucket]:
    login(server.keys)
    yield Bucket(server)
    client.forget()


async def values(source: S3Source, splits: Sequence[Split]) -> list[int]:
    reader = await source.open([(split, split.start) for split in splits])
    found: list[int] = []
    try:
        while True:
            batch = await reader.read(64, 1_000_000)
            found += [json.loads(raw.data)["n"] for raw in batch.records]
            if batch.done:
                return found
    finally:
        await reader.close()


def pins(splits: Sequence[Split]) -> list[str]:
    return [pinned_by(split).pin for split in splits]


async def test_the_planned_version_is_read_though_the_object_was_replaced_or_deleted(bucket: Bucket) -> None:
    """And a resume, which plans nothing anew, reads it as well; what came later is other input."""
    bucket.keep_versions()
    bucket.put("a.jsonl", 0)
    first, other = bucket.put("a.jsonl", 1, 2), bucket.put("b.jsonl", 3)
    planned = await bucket.source().splits(1)
    assert pins(planned) == [first, other]
    bucket.put("a.jsonl", 7, 8)
    bucket.delete("b.jsonl")
    assert await values(bucket.source(), planned) == [1, 2, 3]
    later = await bucket.source().splits(1)
    assert await values(bucket.source(), later) == [7, 8]
    assert not {split.object_id for split in later} & {split.object_id for split in planned}


async def test_what_stands_in_the_bucket_now_is_planned_over_all_pages_of_versions(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions and deleted objects are none of it, wherever a page ends."""
    monkeypatch.setattr(client, "PAGE_KEYS", 3)
    bucket.keep_versions()
    for key in range(5):
        for version in range(key + 1):
            bucket.put(f"{key}.jsonl", 10 * key + version)
    bucket.delete("3.jsonl")
    assert await values(bucket.source(), await bucket.source().splits(1)) == [0, 11, 22, 44]


async def test_a_version_that_was_deleted_for_good_is_told_as_gone(bucket: Bucket) -> None:
    """By a lifecycle rule, say."""
    bucket.keep_versions()
    version = bucket.put("a.jsonl", 1)
    planned = await bucket.source().splits(1)
    bucket.put("a.jsonl", 2)
    bucket.delete("a.jsonl", VersionId=version)
    with pytest.raises(BadRecord, match=r"a\.jsonl is gone") as caught:
        await values(bucket.source(), planned)
    assert caught.value.reason == "source_lost"


@pytest.mark.parametrize("later", ["Enabled", "Suspended"])
async def test_what_has_no_version_of_its_own_is_pinned_by_its_content(bucket: Bucket, later: str) -> None:
    """Put before the bucket kept versions, or while it keeps none: it may be replaced, and is told then."""
    if later == "Suspended":
        bucket.keep_versions()
        bucket.put("a.jsonl", 0)
    bucket.keep_versions("Suspended")
    bucket.put("a.jsonl", 1)
    bucket.keep_versions(later)
    planned = await bucket.source().splits(1)
    [pin] = pins(planned)
    assert pin.startswith('"')
    assert await values(bucket.source(), planned) == [1]
    bucket.put("a.jsonl", 2)
    with pytest.raises(BadRecord, match="was replaced"):
        await values(bucket.source(), planned)


PLAIN = ("s3:ListBucket", "s3:GetObject")
VERSIONS = ("s3:GetBucketVersioning", "s3:ListBucketVersions", "s3:GetObjectVersion")


@pytest.mark.parametrize("rights", [PLAIN, (*PLAIN, VERSIONS[0])])
async def test_who_may_not_list_versions_reads_what_stands_there_pinned_by_its_content(
    server: Versioned, bucket: Bucket, login: Callable[[Keys], None], rights: tuple[str, ...]
) -> None:
    bucket.keep_versions()
    bucket.put("a.jsonl", 0)
    bucket.put("a.jsonl", 1)
    user = server.user()
    bucket.allow(user, *rights)
    login(user)
    planned = await bucket.source().splits(1)
    assert pins(planned)[0].startswith('"')
    assert await values(bucket.source(), planned) == [1]
    bucket.put("a.jsonl", 2)
    with pytest.raises(BadRecord, match="was replaced"):
        await values(bucket.source(), planned)


def plan_of(splits: Sequence[Split]) -> Plan:
    return Plan("r", "n", {}, 1, tuple(splits), {}, 0.0)


async def test_objects_are_no_new_input_to_whoever_may_see_other_names_of_them(
    server: Versioned, bucket: Bucket, login: Callable[[Keys], None]
) -> None:
    """The next command of a run has fewer rights, or more; or the bucket keeps no versions any more."""
    bucket.keep_versions()
    bucket.put("a.jsonl", 1)
    by_version = await bucket.source().splits(1)
    user = server.user()
    bucket.allow(user, *PLAIN)
    login(user)
    by_content = await bucket.source().splits(1)
    assert pins(by_content) != pins(by_version)
    assert await bucket.source().beside(plan_of(by_version)) == Later([])
    login(server.keys)
    assert await bucket.source().beside(plan_of(by_content)) == Later([])
    bucket.keep_versions("Suspended")
    bucket.put("b.jsonl", 2)
    [new] = (await bucket.source().beside(plan_of(by_version))).splits
    assert new.uri.endswith("/b.jsonl")


async def test_the_rights_that_the_documentation_names_are_enough(
    server: Versioned, bucket: Bucket, login: Callable[[Keys], None]
) -> None:
    """And who may list versions but not read them is told which right is missing."""
    bucket.keep_versions()
    bucket.put("a.jsonl", 1)
    user = server.user()
    bucket.allow(user, *PLAIN, *VERSIONS)
    login(user)
    planned = await bucket.source().splits(1)
    bucket.put("a.jsonl", 2)
    assert await values(bucket.source(), planned) == [1]
    bucket.allow(user, *PLAIN, *VERSIONS[:2])
    with pytest.raises(Refused, match=r"version .* of s3://.*/a\.jsonl.*403"):
        await values(bucket.source(), planned)


async def test_a_bucket_that_keeps_versions_is_a_store_as_any_other(bucket: Bucket) -> None:
    """Conditional puts, merges, deleting and --fresh, though deleted objects leave marks there."""
    bucket.keep_versions()
    world = World(bucket.endpoint, bucket.name)
    for _ in range(2):
        store = world.store()
        await fill(store, 3)
        [url] = (await store.finish(PLAN))["results"]
        assert sorted(numbers(list(read_records(url)))) == list(range(2, 8))
        assert len(world.seen("out/results/")) == 1
        await world.place().discard()
        assert world.committed() == []
