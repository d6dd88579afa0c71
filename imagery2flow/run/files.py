"""The one place that writes files: under a temporary name, brought to the disk, then renamed.

A reader never sees half a file, and a machine that loses its power leaves the file before or the whole new one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagery2flow.run.errors import InputError, MissingInputError, first_sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP}  # file systems that know no such thing, or not for folders
SYNCS_AT_ONCE = 16


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is brought to the disk and renamed to ``path``, on failure removed.

    Args:
        path: File to write.
        sync: Whether to wait for the disk. Thousands of small files are cheaper brought there together, by ``sync_files``, before a file that names them.
    """
    # The suffix stays last because writers choose their format by it. Processes of several machines may share a number.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if sync:
            sync_file(temporary)
        temporary.replace(path)
        if sync:
            sync_file(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(number)


def sync_files(paths: Iterable[Path]) -> None:
    """The same for many files: asked for together, they reach the disk in a fraction of the time."""
    with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
        list(pool.map(sync_file, paths))


def remove_halves(folder: Path) -> None:
    """Removes the temporary files that killed processes of this machine left in a folder."""
    name = re.compile(rf"\..+\.{re.escape(platform.node())}\.(\d+)(\.[^.]+)?")
    for path in folder.glob(".*"):
        found = name.fullmatch(path.name)
        if found and not is_running(int(found[1])):
            path.unlink(missing_ok=True)


def is_running(process_id: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, as another user's
        return True
    return True


@contextmanager
def replacing_by_gdal(path: Path) -> Iterator[Path]:
    """The same for files that GDAL writes, which does not say with a number of the system's what went wrong.

    Raises:
        InputError: The file cannot be written.
    """
    temporary = None
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:  # those of rasterio and of pyogrio
        raise InputError(
            f"{path} cannot be written ({first_sentence(error.__cause__ or error)}); see that its disk has room, and run the same command again"
        ) from error
    finally:
        if temporary is not None:
            for part in temporary.parent.glob(f"{temporary.name}*"):  # journals of a database
                part.unlink()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys, so that equal content gives equal bytes; a number that does not exist (NaN) is null."""
    write_text(path, json.dumps(strict_json(content), indent=2, sort_keys=True, allow_nan=False) + "\n")


def strict_json(content: Any) -> Any:
    """The same content without NaN and infinite numbers, which JSON does not know: null, and the texts "inf" and "-inf"."""
    if isinstance(content, dict):
        return {key: strict_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict_json(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(float(content))
    return content


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Saves tensors and plain values with ``torch.save``.

    The archive is built in memory first: torch writes the file's name into it, and a temporary name would differ between runs.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(unshared(content), buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def unshared(content: Any) -> Any:
    """The same content on the CPU, in new containers, with one copy of each text: pickle writes whether two are one object, which loading changes."""
    if isinstance(content, dict):
        return {unshared(key): unshared(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)([unshared(value) for value in content])
    if hasattr(content, "detach"):  # a tensor; torch is not imported here
        return content.detach().cpu()
    return sys.intern(str(content)) if isinstance(content, str) else content


def content_hash(content: Any) -> str:
    """Hash of tensors, arrays, plain values and containers of them, the same wherever and in whatever order of keys they were made."""
    found = hashlib.sha256()
    add_to_hash(found, content)
    return found.hexdigest()


def add_to_hash(found: Any, content: Any) -> None:
    """Feeds content to a hash, with what tells one structure from another."""
    import numpy as np

    if hasattr(content, "detach"):
        content = content.detach().cpu().numpy()
    if isinstance(content, np.generic):
        content = content.item()
    if isinstance(content, np.ndarray) and content.dtype != object:
        found.update(f"array {content.dtype} {content.shape} ".encode())
        found.update(np.ascontiguousarray(content).data)
    elif isinstance(content, dict):
        found.update(f"dict {len(content)} ".encode())
        for key in sorted(content, key=str):
            add_to_hash(found, key)
            add_to_hash(found, content[key])
    elif isinstance(content, list | tuple):
        found.update(f"list {len(content)} ".encode())
        for value in content:
            add_to_hash(found, value)
    elif isinstance(content, bytes):
        found.update(f"bytes {len(content)} ".encode() + content)
    else:
        assert content is None or isinstance(content, str | int | float), f"no content that can be hashed: {type(content)}"
        text = repr(content).encode()
        found.update(f"value {len(text)} ".encode() + text)


def as_tensors(item: Any) -> dict[str, Any]:
    """The fields of a dataclass of arrays and plain values, for ``save_tensors``."""
    import numpy as np
    import torch

    values = {part.name: getattr(item, part.name) for part in fields(item)}
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}


def from_tensors(values: dict[str, Any]) -> dict[str, Any]:
    """The reverse of ``as_tensors``."""
    import torch

    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def load_tensors(path: Path, what: str, writer: str = "this project") -> dict[str, Any]:
    """Loads what ``save_tensors`` or ``torch.save`` of another writer wrote, onto the CPU, without running any code that the file may hold.

    Raises:
        MissingInputError: There is no such file.
        InputError: The file is not a plain dictionary of tensors and values.
    """
    import torch

    existing_file(path, what)
    try:
        refuse_damaged_archive(path)
        with warnings.catch_warnings():  # of the pickles of others
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises a dozen classes, depending on which byte is wrong
        raise InputError(
            f"{what} {path} cannot be read as a file of weights ({first_sentence(error)}); name one that {writer} wrote"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{what} {path} holds a {type(content).__name__} instead of named tensors; name a file that {writer} wrote")
    return content


def refuse_damaged_archive(path: Path) -> None:
    """Refuses a file of tensors whose content is not what its checksums say: torch does not look, and would take other weights for these.

    Raises:
        BadZipFile: A part is damaged.
    """
    if zipfile.is_zipfile(path):  # files of torch before 1.6 are none, and have no checksums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is another")


def existing_file(path: str | Path, what: str) -> Path:
    """Returns the path of a file that exists.

    Raises:
        MissingInputError: There is no such file; the message names the nearest parent that exists.
    """
    path = Path(path)
    if path.is_file():
        return path
    parent = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    kind = "is a folder, not a file" if path.is_dir() else f"does not exist (the deepest folder that does: {parent})"
    raise MissingInputError(f"{what} {path} {kind}; check the path")


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Args:
        path: The file, which exists.
        what: What it holds, for messages.
        remedy: What the user can do about a damaged one.

    Raises:
        InputError: It is no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also a UnicodeDecodeError
        raise InputError(f"{what} {path} cannot be read as JSON ({first_sentence(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{what} {path} holds a {type(content).__name__} instead of named values; {remedy}")
    return content


def check_output_folder(folder: str | Path, flag: str) -> None:
    """Refuses an output folder that cannot be made, before the work begins.

    Raises:
        InputError: A part of its path is a file, or may not be written to.
    """
    deepest = deepest_existing(Path(folder))
    if not deepest.is_dir() or not os.access(deepest, os.W_OK):
        problem = "may not be written to" if deepest.is_dir() else "is a file"
        raise InputError(f"{flag} {folder} cannot be a folder, because {deepest} {problem}; name another")


def deepest_existing(path: Path) -> Path:
    """The path itself, or the nearest parent that exists."""
    return next(candidate for candidate in (path, *path.absolute().parents) if candidate.exists())


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def give_second_name(path: Path, other: Path) -> None:
    """Lets ``other`` name the same file as ``path``, which costs nothing; a copy where the file system has no such thing."""
    if other.is_file() and other.samefile(path):
        return  # a rename of one name of a file to another of it would do nothing, and leave the temporary one
    with replacing(other) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG, PDF or SVG, by the suffix of ``path``; without the date, so that equal figures give equal bytes.

    Text stays text in PDF (TrueType) and SVG, which can be searched, and edited in a drawing program.
    """
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    dateless = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}[path.suffix]
    with replacing(path) as temporary, rc_context({"svg.hashsalt": "imagery2flow", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(temporary, metadata=dateless)


def sha256(path: Path) -> str:
    """Hash of a file's content, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
