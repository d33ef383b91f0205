"""One Ray for the commands of a file, where it is not Ray itself that is harmed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.shared_ray import SharedRay


@pytest.fixture(scope="module")
def ray() -> Iterator[SharedRay]:
    shared = SharedRay()
    try:
        yield shared
    finally:
        shared.close()
