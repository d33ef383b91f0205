"""The folders of `partition_by`: S3 takes their names, whatever the rows hold."""

from __future__ import annotations

from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.connectors.base import OutRecord
from penstock.connectors.s3.store.partitions import MAX_VALUE, divider, folder_name
from penstock.connectors.settings import S3Sink

KEY_BYTES = 1024
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html"""


def folder_of(value: str) -> str:
    divide = divider({"results": S3Sink("b", "p/", partition_by=("shop",))})
    return divide("results", OutRecord(0, 0, msgspec.json.encode({"shop": value, "penstock": {}})))


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("north", "shop=north/"),
        ("a/../b", "shop=a%2F..%2Fb/"),
        ("é", "shop=%C3%A9/"),
        ("x" * 120, f"shop={'x' * 120}/"),
    ],
)
def test_an_ordinary_value_is_its_folders_name(value: str, folder: str) -> None:
    """As Hive and Spark write it."""
    assert folder_of(value) == folder


@pytest.mark.parametrize("value", ["x" * 2_000, "é" * 300, "\U0001f600" * 400, "/" * 1_000])
def test_a_long_value_makes_a_key_that_s3_takes(value: str) -> None:
    """S3 refuses longer keys, and a run that is paid for would end. What is cut is no broken letter, and values that
    begin alike stay apart."""
    assert 5 * len(folder_of(value)) < KEY_BYTES
    head = unquote(folder_of(value).removeprefix("shop="), errors="strict").rpartition("-")[0]
    assert head
    assert value.startswith(head)
    assert folder_of(value) != folder_of(value + "y")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_every_value_has_a_name_in_bounds(value: str) -> None:
    """One level of folders, always the same."""
    name = folder_name(value)
    assert 0 < len(name) <= MAX_VALUE
    assert "/" not in name
    assert name.isascii()
