"""One set of servers for all tests in this folder."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from penstock.jobs.dev.fetch import MissingTool
from tests.crash.streams.stage import Stage, stage

_PR_SET_CHILD_SUBREAPER = 36
"""<sys/prctl.h>: orphans of killed commands become our children, and are collected."""


@pytest.fixture(scope="package", name="servers")
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        with stage(tmp_path_factory.mktemp("stage")) as made:
            yield made
    except MissingTool as error:
        pytest.skip(str(error))
    finally:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
