"""The state URL as plain keys and values, for history. Only what people read goes through here; leases and the ledger
have their own, stricter door (`connectors.state`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from penstock.engine.errors import SpecError, Temporary
from penstock.jobs.history import Keys


class FolderKeys:
    """Keys are paths below a folder. A value is replaced in one act: readers see the old one or the new one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> bytes | None:
        try:
            return (self._folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Temporary(f"can't read {self._folder / key}: {error.strerror}") from error

    def put(self, key: str, value: bytes) -> None:
        path = self._folder / key
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(value)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise Temporary(f"can't write {path}: {error.strerror}; is the disk full, or the folder yours?") from error

    def delete(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        for path in sorted((self._folder / prefix).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(self._folder).as_posix()


def open_keys(url: str) -> Keys:
    """Raises `SpecError` for a kind of URL that no connector knows yet."""
    if "://" in url:
        raise SpecError(f"state {url}: this kind of state isn't there yet; give a folder")
    return FolderKeys(Path(url))
