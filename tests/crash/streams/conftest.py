"""One set of servers for all tests in this folder."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Generator, Iterator

import pytest

from penstock.jobs.dev.fetch import MissingTool
from tests.crash.streams.stage import Stage, cluster_stage, stage

_PR_SET_CHILD_SUBREAPER = 36
"""<sys/prctl.h>: orphans of killed commands become our children, and are collected."""


@pytest.fixture(scope="package", name="servers")
def _servers(tmp_path_factory: pytest.TempPathFactory, orphans: None) -> Iterator[Stage]:
    with _or_skipped(), stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture(scope="module", name="cluster")
def _cluster(tmp_path_factory: pytest.TempPathFactory, orphans: None) -> Iterator[Stage]:
    """With three brokers."""
    with _or_skipped(), cluster_stage(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="package", name="orphans")
def _orphans() -> Iterator[None]:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@contextlib.contextmanager
def _or_skipped() -> Generator[None]:
    try:
        yield
    except MissingTool as error:
        pytest.skip(str(error))
