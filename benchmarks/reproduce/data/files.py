"""Finds the files of a set in a folder, in its usual subfolder, or in its archive."""

import gzip
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .kinds import BadData

MOST = 4  # names in a message
READ = 1 << 20  # bytes


@dataclass(frozen=True)
class Layout:
    """A form in which a set is handed out."""

    subfolder: str
    files: tuple[str, ...]
    archive: str | None = None


def listed(names: Iterable[str]) -> str:
    """A few of the names, and how many more there are."""
    some = sorted(names)
    more = f" and {len(some) - MOST} more" if len(some) > MOST else ""
    return (", ".join(some[:MOST]) or "nothing") + more


def said(error: Exception) -> str:
    """An error's own words in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise BadData(f"{folder} must be the folder of the data, but {what}")


def nothing_found(folder: Path, expected: Iterable[str]) -> BadData:
    return BadData(
        f"{folder} must hold {' or '.join(expected)}, "
        f"but holds {listed(path.name for path in folder.iterdir())}"
    )


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadData(f"{path} must be a readable file, but: {error.strerror}") from None


def from_tar(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """These files, in one pass: to go back in a compressed archive is to read it again."""
    found = {}
    try:
        with gzip.open(archive) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r:") as tar:
                for member in tar:
                    name = PurePosixPath(member.name).name
                    file = tar.extractfile(member) if name in names else None
                    if file is not None:
                        found[name] = file.read()
            while unpacked.read(READ):  # to the end: there is the checksum, and tarfile stops early
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise BadData(
            f"{archive} must be a whole .tar.gz, but is truncated or damaged ({said(error)})"
        ) from None
    if missing := set(names) - found.keys():
        raise BadData(f"{archive} must hold {listed(names)}, but lacks {listed(missing)}")
    return {name: found[name] for name in names}


def find(folder: Path, layouts: tuple[Layout, ...]) -> tuple[Layout, Path, dict[str, bytes]]:
    """The first layout whose files are all there, their folder or archive, and what they hold."""
    check_folder(folder)
    incomplete = None
    for layout in layouts:
        for place in (folder / layout.subfolder, folder):
            missing = [name for name in layout.files if not (place / name).is_file()]
            if not missing:
                return layout, place, {name: read_bytes(place / name) for name in layout.files}
            if len(missing) < len(layout.files) and incomplete is None:
                incomplete = BadData(
                    f"{place} must hold {listed(layout.files)}, but lacks {listed(missing)}"
                )
        if layout.archive and (archive := folder / layout.archive).is_file():
            return layout, archive, from_tar(archive, layout.files)
    places = [f"{layout.subfolder}/" for layout in layouts if layout.archive]
    archives = [layout.archive for layout in layouts if layout.archive]
    raise incomplete or nothing_found(folder, places + archives or [" and ".join(layouts[0].files)])
