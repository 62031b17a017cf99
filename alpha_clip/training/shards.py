"""Tar shards in the WebDataset layout: listing, fetching and indexing them."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import tarfile
import urllib.request
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from tqdm import tqdm

from .. import atomic
from ..atomic import replacing

CACHE = "~/.cache/alpha_clip/shards"
IMAGES = ("jpg", "jpeg", "png", "webp")
TIMEOUT = 20  # seconds without a byte after which a server counts as hanging

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = 512  # bytes of a block of a tar archive, which ends with two blocks of zeros
_VERSION = 1  # of the index files


class Entry(NamedTuple):
    """Where a sample is in its shard, in bytes, or why it cannot be read."""

    key: str
    image_at: int = 0
    image_size: int = 0
    json_at: int = 0
    json_size: int = 0
    wrong: str = ""


def is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def local(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], cache: Path) -> list[Path]:
    """The local files of a folder of ``*.tar``, a shard, a brace range such as ``{000..009}.tar``, or a list of these.

    Shards at URLs are fetched into `cache` unless they are there. If a shard changes at the same URL, it is not fetched
    again: delete it from `cache`.

    Raises:
        FileNotFoundError: a shard does not exist, or a folder has none.
        ValueError: a brace range is empty.
        ConnectionError: a shard cannot be fetched.
    """
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    names = [name for item in sources for name in _expanded(os.fspath(item))]
    missing = [name for name in names if not is_url(name) and not Path(name).is_file()]
    if missing or not names:
        what = "no shard is named"
        if missing:
            what = f"there is no shard {missing[0]} ({len(missing)} of {len(names)} are missing)"
        elif sources:
            what = f"there is no shard in {', '.join(str(item) for item in sources)}"
        raise FileNotFoundError(f"{what}: expected a folder of *.tar, a shard, a range {{000..009}}.tar, or URLs")
    remote = any(map(is_url, names))
    shown = tqdm(names, "shards", disable=None if remote else True)
    return [fetched(name, cache) if is_url(name) else Path(name) for name in shown]


def _expanded(name: str) -> list[str]:
    if not is_url(name) and Path(name).is_dir():
        # Hidden files are not shards: macOS leaves a `._NAME.tar` beside each `NAME.tar` on some disks.
        return [str(path) for path in sorted(Path(name).glob("*.tar")) if not path.name.startswith(".")]
    if (span := _RANGE.search(name)) is None:
        return [name]
    first, last = span.groups()
    if int(first) > int(last):
        raise ValueError(f"the range {span[0]} in {name} is empty, expected {{{last}..{first}}}")
    middle = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    return [more for m in middle for more in _expanded(name[: span.start()] + m + name[span.end() :])]


def fetched(url: str, cache: Path) -> Path:
    """The file in `cache` of what is at `url`, fetched if needed, under a temporary name until it is whole.

    Raises:
        ConnectionError: it cannot be fetched, or not to its end. Then nothing of it is left.
    """
    basename = re.sub(r"[^\w.-]", "_", url.partition("?")[0].rpartition("/")[2])
    path = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{basename}"
    if path.is_file():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock):  # only one of many processes fetches
            return path if path.is_file() else _fetch(url, path)
    finally:
        lock.unlink(missing_ok=True)  # a waiting process has it open; at worst a shard is fetched twice


def _fetch(url: str, path: Path) -> Path:
    cache = path.parent
    request = urllib.request.Request(url, headers={"User-Agent": "alpha-clip"})
    try:
        # Not torch.hub's download nor urlretrieve: when a connection breaks, the former keeps what came.
        with (
            replacing(path) as part,
            urllib.request.urlopen(request, timeout=TIMEOUT) as answer,
            part.open("wb") as file,
        ):
            expected = answer.headers["Content-Length"]
            shutil.copyfileobj(answer, file, 1 << 20)
            if expected is not None and file.tell() != int(expected):
                raise ConnectionError(f"{file.tell()} of {expected} bytes came")
    except (OSError, http.client.HTTPException) as error:
        remedy = "check the address, then run again; shards that came are kept"
        raise ConnectionError(f"{url} could not be fetched into {cache}: {error}: {remedy}") from error
    return path


# --- the index ---


def index(shard: Path, cache: Path) -> list[Entry]:
    """The samples of a shard, in order, from its index file beside it or in `cache`.

    The index is made if there is none, or if the shard's size or modification time changed.
    """
    stat = shard.stat()
    stamp = {"version": _VERSION, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    digest = hashlib.sha256(os.fsencode(shard.resolve())).hexdigest()[:16]
    places = [shard.with_name(f".{shard.name}.index.json"), cache / f"{digest}.index.json"]
    for place in places:
        with suppress(OSError, ValueError, TypeError, LookupError):  # no index, or a damaged one
            record = json.loads(place.read_text(encoding="utf-8"))
            if {name: record[name] for name in stamp} == stamp:
                return [Entry(*entry) for entry in record["samples"]]
    entries = scanned(shard)
    _remember(json.dumps(stamp | {"samples": entries}), places)
    return entries


def _remember(text: str, places: list[Path]) -> None:
    for place in places:
        with suppress(OSError):  # if it cannot be written anywhere, the next run scans again
            place.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(place, text)
            return


def scanned(shard: Path, needed: Sequence[str] = ("image", "json")) -> list[Entry]:
    """Find the samples of a shard by reading its headers only; each must have the files that are `needed`.

    What is wrong becomes an entry that says so: a sample without its picture or json, with two of one kind, with a dot
    in its base name (WebDataset ends the key at the first) or cut off. A damaged shard is an entry of the shard's name.
    """
    size = shard.stat().st_size
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    wrong: dict[str, str] = {}
    end, error = 0, "it is empty"
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isfile() and (name := _split(member.name)):
                    _add(samples, wrong, name, (member.offset_data, member.size), size)
                end = tar.offset  # the next header must be here
    except (tarfile.TarError, ValueError, OverflowError) as raised:
        error = str(raised)
    else:
        error = "it has no end mark there"
    entries = [_entry(key, parts, wrong.get(key, ""), needed) for key, parts in samples.items()]
    with shard.open("rb") as file:
        file.seek(end)
        whole = file.read(_BLOCK) == bytes(_BLOCK)
    if not whole:
        reason = f"the shard is damaged or cut off at byte {end} of {size}, after {len(entries)} samples ({error})"
        entries.append(Entry(shard.name, wrong=f"{reason}: copy, fetch or make it again, as a tar without compression"))
    return entries


def _split(name: str) -> tuple[str, str, bool] | None:
    """The key, "image" or "json", and whether the base name has a dot; None for any other file."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffixes = base.partition(".")
    more, _, suffix = suffixes.lower().rpartition(".")
    if not stem or suffix not in (*IMAGES, "json"):
        return None
    kind = "json" if suffix == "json" else "image"
    return folder + slash + (base.rpartition(".")[0] if more else stem), kind, bool(more)


def _add(
    samples: dict[str, dict[str, tuple[int, int]]],
    wrong: dict[str, str],
    name: tuple[str, str, bool],
    span: tuple[int, int],
    size: int,
) -> None:
    key, kind, dotted = name
    parts = samples.setdefault(key, {})
    if dotted:
        better = key.rpartition("/")[2].replace(".", "_")
        wrong[key] = f"its base name has a dot, which ends the key in WebDataset: name the files {better}.*"
    elif kind in parts:
        wrong[key] = f"it has two {kind} files in one shard, expected one: give each sample a key of its own"
    elif not 0 <= span[1] <= size - span[0]:
        wrong[key] = f"the shard ends within its {kind} file: copy, fetch or make the shard again"
    parts[kind] = span


def _entry(key: str, parts: dict[str, tuple[int, int]], wrong: str, needed: Sequence[str]) -> Entry:
    missing = [name for name in needed if name not in parts]
    if missing and not wrong:
        expected = " or ".join(f"{key}.{suffix}" for suffix in (IMAGES if missing == ["image"] else ["json"]))
        wrong = f"it has no {missing[0]} file in the shard, expected {expected}"
    return Entry(key, wrong=wrong) if wrong else Entry(key, *parts.get("image", (0, 0)), *parts.get("json", (0, 0)))
