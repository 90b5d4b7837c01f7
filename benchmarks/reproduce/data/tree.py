"""A folder of many files, or the same in a .zip."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath

from .files import read_bytes, said
from .kinds import BadData


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def below(self, folder: str) -> list[PurePosixPath]:
        """The paths, from the root, of all files below this folder, sorted."""
        found = (
            Path(place, name) for place, _, names in os.walk(self.root / folder) for name in names
        )
        return sorted(PurePosixPath(path.relative_to(self.root).as_posix()) for path in found)

    def read(self, name: PurePosixPath) -> bytes:
        return read_bytes(self.root / name)


class Zip:
    """The folder `top` in an archive."""

    def __init__(self, archive: Path, top: str) -> None:
        self.root = archive / top
        try:
            self.zip = zipfile.ZipFile(archive)
        except Exception as error:  # damaged bytes fail in any way
            raise BadData(
                f"{archive} must be a whole .zip, but is truncated or damaged ({said(error)})"
            ) from None
        names = (PurePosixPath(entry) for entry in self.zip.namelist() if not entry.endswith("/"))
        self.names = sorted(name.relative_to(top) for name in names if name.parts[:1] == (top,))

    def below(self, folder: str) -> list[PurePosixPath]:
        return [name for name in self.names if name.parts[:1] == (folder,)]

    def read(self, name: PurePosixPath) -> bytes:
        try:
            return self.zip.read(str(PurePosixPath(self.root.name) / name))
        except KeyError:
            raise BadData(f"{self.root} must hold {name}, but lacks it") from None
        except Exception as error:
            raise BadData(
                f"{self.root / name} must be whole, but is damaged ({said(error)})"
            ) from None
