"""Find or fetch a known file of weights: on this disk, a mirror, the Hub or the authors' Google Drive."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from . import hashes
from .checkpoints import WEIGHT_FILES
from .errors import AlphaWeightsNotFound, HashMismatch, WeightsError

_log = logging.getLogger(__name__)

OPENAI_CACHE = "~/.cache/clip"
OUR_CACHE = "~/.cache/alpha_clip"  # for what does not come from the Hub, which has a cache of its own
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
OFFICIAL = "https://github.com/SunzeY/AlphaCLIP"
LICENCE = "The Alpha-CLIP authors' weights are for research use only (CC BY-NC 4.0)."
Root = str | Path | None  # a folder that the user names to look in and to download to
TIMEOUT = 20  # seconds without a byte, after which Google Drive counts as hanging; the Hub's client has its own


@dataclass(frozen=True)
class KnownFile:
    """A catalogue entry: one file of weights, its hash, and the places where it is known to be."""

    file: str
    sha256: str | None = None  # None: not known; then the hash that the Hub states for the pinned revision is checked
    repo: str | None = None  # on the Hub; None: no copy is known there
    revision: str | None = None
    repo_type: str = "model"
    other_names: tuple[str, ...] = ()  # of the same file, met in the wild
    drive: str | None = None  # id on the Alpha-CLIP authors' Google Drive; None: not a file of theirs
    original: tuple[str, str] | None = None  # file and SHA-256 of OpenAI's own archive of the same weights
    note: str = ""  # what its users should know

    @property
    def names(self) -> tuple[str, ...]:
        return (self.file, *self.other_names)


def locate(wanted: KnownFile, download_root: Root = None) -> Path:
    """Return the path of a known file on this disk, its hash checked; download it if it is not there.

    Args:
        wanted: an entry of the catalogue.
        download_root: folder to look in and to download to; None: the Hub's cache, and `OUR_CACHE`.

    Raises:
        AlphaWeightsNotFound: no source has this file of alpha weights; what each said is in the message.
        WeightsError: likewise, for a base.
        HashMismatch: no source has it, and what one gave is not the file. It was deleted; the next call fetches it
            again.
    """
    failures: list[str] = []
    mismatch: HashMismatch | None = None
    for source, find in _sources(wanted, download_root):
        try:
            path = find()
        except HashMismatch as error:
            mismatch = error
            failures.append(f"{source}: {error}")
            _log.warning("%s: %s", source, error)
        except Exception as error:  # the Hub's client lets those of its HTTP library through
            failures.append(f"{source}: {_reason(error)}")
        else:
            if path is not None:
                _log.info("%s: found %s as %s", wanted.file, source, path)
                return path
            failures.append(f"{source}: not there")
        _log.info("%s: not found %s", wanted.file, failures[-1])
    if mismatch is not None:
        raise HashMismatch(str(_not_found(wanted, failures))) from mismatch
    raise _not_found(wanted, failures)


def repository(repo: str, download_root: Root = None) -> Path:
    """Download the weights in ``user/repo`` or ``user/repo@revision`` on the Hub, with the configuration beside them.

    Raises:
        WeightsError: it cannot be reached and is not in the cache, or holds none of `WEIGHT_FILES`.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo, _, revision = repo.partition("@")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise WeightsError(f"{repo!r} names no repository on the Hub ({error}): expected user/repo") from error
    cached = partial(try_to_load_from_cache, repo, cache_dir=download_root, revision=revision or None)
    before = [cached(name) for name in WEIGHT_FILES]  # fetching moves the revision that a branch stands for
    try:
        wanted = KnownFile("", repo=repo, revision=revision or None)
        files = _listed(wanted)
        chosen = next((name for name in WEIGHT_FILES if name in files), None)
        if chosen is None:
            raise WeightsError(f"it holds none of {', '.join(WEIGHT_FILES)}")
        for name in (name for name in files if name.endswith(".json") and "/" not in name):
            _fetched(wanted, name, download_root)
        if (fetched := _fetched(wanted, chosen, download_root)) is None:
            raise WeightsError(f"{chosen} is in its list of files, and nowhere else")
        return _checked(fetched, KnownFile(chosen))
    except HashMismatch:
        raise
    except Exception as error:  # as in `locate`
        for path in before:
            if isinstance(path, str):
                _log.warning("%s is taken from the cache: %s", repo, _reason(error))
                return _checked(Path(path), KnownFile(Path(path).name))
        raise WeightsError(f"{repo} could not be downloaded from the Hugging Face Hub: {_reason(error)}") from error


def _sources(wanted: KnownFile, root: Root) -> Iterator[tuple[str, Callable[[], Path | None]]]:
    """Yield the sources in order: a phrase that says where, and the function that looks there."""
    folders = [Path(folder).expanduser() for folder in (root, OPENAI_CACHE, OUR_CACHE) if folder]
    yield "on this disk", partial(_on_disk, wanted, folders)
    if mirror := os.environ.get("ALPHA_CLIP_REPO"):
        where = f"in ALPHA_CLIP_REPO={mirror}"
        if (folder := Path(mirror).expanduser()).is_dir():
            yield where, partial(_on_disk, wanted, [p for p in (folder, *sorted(folder.rglob("*"))) if p.is_dir()])
        elif mirror.startswith((".", "/", "~")) or mirror.count("/") != 1:
            raise WeightsError(f"{where}: neither a folder nor a repository on the Hub, user/repo; correct or unset it")
        elif wanted.drive:  # the bases' names say too little to be looked for in somebody's repository
            yield where, partial(_on_hub, replace(wanted, repo=mirror, revision=None, repo_type="model"), root)
    if wanted.repo:
        yield f"in {wanted.repo} on the Hugging Face Hub", partial(_on_hub, wanted, root)
    if wanted.drive:
        yield "on the authors' Google Drive", partial(_on_drive, wanted, Path(root or OUR_CACHE).expanduser())


def _on_disk(wanted: KnownFile, folders: list[Path]) -> Path | None:
    known = [(name, wanted.sha256) for name in wanted.names if wanted.sha256]
    known += [wanted.original] if wanted.original else []
    for path, expected in ((folder / name, expected) for folder in folders for name, expected in known):
        try:
            if not path.is_file():
                continue
            if hashes.known_sha256(path) == expected:
                return path
        except OSError as error:
            _log.warning("%s cannot be read (%s): passed over", path, error.strerror)
            continue
        _log.warning("%s does not have the SHA-256 %s of %s: left alone", path, expected, wanted.file)
    return None


# --- the Hub ---


def _on_hub(wanted: KnownFile, root: Root) -> Path | None:
    """Return the file in the Hub's cache, and download it first if it is not there; None: the repository has none."""
    if (path := _in_hub_cache(wanted, root)) is not None:
        return _checked(path, wanted)
    if (path := _from_hub(wanted, root)) is None:
        return None
    path = _checked(path, wanted)
    if wanted.drive:
        _log.warning(LICENCE)
    return path


def _in_hub_cache(wanted: KnownFile, root: Root) -> Path | None:
    from huggingface_hub import snapshot_download

    assert wanted.repo
    patterns = [f"*{name}" for name in wanted.names]  # in any folder
    cached = partial(snapshot_download, repo_type=wanted.repo_type, revision=wanted.revision, cache_dir=root)
    try:
        folder = cached(wanted.repo, allow_patterns=patterns, local_files_only=True)
    except FileNotFoundError:
        return None
    return next((p for p in sorted(Path(folder).rglob("*")) if p.name in wanted.names and p.is_file()), None)


def _from_hub(wanted: KnownFile, root: Root) -> Path | None:
    for name in wanted.names:
        if (path := _fetched(wanted, name, root)) is not None:
            return path
    # In which folder it lies is not known of all copies.
    file = next((file for file in _listed(wanted) if file.rpartition("/")[2] in wanted.names), None)
    return None if file is None else _fetched(wanted, file, root)


def _fetched(wanted: KnownFile, file: str, root: Root) -> Path | None:
    """Download `file` of its repository to the Hub's cache; None: the repository has none."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    assert wanted.repo
    url = hf_hub_url(wanted.repo, file, repo_type=wanted.repo_type, revision=wanted.revision)
    try:
        # A server that does not answer this is given up. `hf_hub_download` alone would ask it for minutes: where
        # nothing is cached it tries six times more, with a time limit of its own, whatever HF_HUB_ETAG_TIMEOUT says.
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except EntryNotFoundError:
        return None
    fetch = partial(hf_hub_download, repo_type=wanted.repo_type, revision=wanted.revision, cache_dir=root)
    return Path(fetch(wanted.repo, file))


def _listed(wanted: KnownFile) -> list[str]:
    """List the files in its repository."""
    from huggingface_hub import HfApi, constants

    ask = HfApi().space_info if wanted.repo_type == "space" else HfApi().model_info
    # Unlike its list_repo_files, this does not try for half a minute.
    info = ask(str(wanted.repo), revision=wanted.revision or "main", timeout=constants.HF_HUB_ETAG_TIMEOUT)
    return [sibling.rfilename for sibling in info.siblings or []]


# --- Google Drive ---


def _on_drive(wanted: KnownFile, folder: Path) -> Path:
    """Download the file into `folder`, under a temporary name until it is whole."""
    import torch.hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise WeightsError("not asked, as HF_HUB_OFFLINE is set")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / wanted.file
    part = folder / f".{wanted.file}.{os.getpid()}-{threading.get_ident()}.part"
    if (found := _on_disk(wanted, [folder])) is not None:  # fetched by somebody else since this was looked for
        return found
    if path.exists():  # it may be the user's own
        raise WeightsError(f"{path} is another file, and would be replaced: move it away")
    show = sys.stderr.isatty() and not constants.HF_HUB_DISABLE_PROGRESS_BARS
    try:
        with _network_timeout(TIMEOUT):
            torch.hub.download_url_to_file(f"{DRIVE}{wanted.drive}", str(part), progress=show)
        with part.open("rb") as file:
            if file.read(64).lstrip().startswith(b"<"):
                raise WeightsError("a web page came instead of the file, as when its daily quota is used up")
        _checked(part, wanted)
        os.replace(part, path)
    finally:
        hashes.forget(part)
        part.unlink(missing_ok=True)
    _log.warning(LICENCE)
    return path


_timeout_lock = threading.Lock()


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of connections that are opened without one, in the whole process while this lasts."""
    with _timeout_lock:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(seconds)
        try:
            yield
        finally:
            socket.setdefaulttimeout(before)


# --- what comes of it ---


def _checked(path: Path, wanted: KnownFile) -> Path:
    """Return `path` if its hash is right; otherwise delete it, so that the next load fetches it again, and raise."""
    blob = path.resolve().name  # the Hub's cache names large files by the SHA-256 that the Hub states
    expected = wanted.sha256 or (blob if len(blob) == 64 and set(blob) <= set("0123456789abcdef") else None)
    if expected is None or (found := hashes.known_sha256(path)) == expected:
        return path
    hashes.forget(path)
    path.resolve().unlink()  # in the Hub's cache, `path` is a link
    path.unlink(missing_ok=True)
    raise HashMismatch(
        f"{wanted.file} was fetched with SHA-256 {found}, expected {expected}: its download was cut short, or its "
        "source holds another file. It was deleted; load again to fetch it anew."
    )


_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        text = " ".join(str(error.__cause__).split())  # what happened, in place of what it might have been
    if isinstance(error, GatedRepoError):
        text += " Ask for access on the repository's page, then log in: `hf auth login`, or HF_TOKEN."
    elif isinstance(error, RepositoryNotFoundError):
        text += " If it is private, log in: `hf auth login`, or HF_TOKEN."
    elif "Timeout" in type(error).__name__ and not isinstance(error, TimeoutError):  # of the client's HTTP library
        text = (
            f"its server did not answer in time ({text}). Try again, or set HF_HUB_ETAG_TIMEOUT and "
            "HF_HUB_DOWNLOAD_TIMEOUT to more seconds."
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        text += ": free some space, or pass a download_root= on another disk."
    elif isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        text += ": pass a download_root= that is a folder and can be written to."
    return text


def _not_found(wanted: KnownFile, failures: list[str]) -> WeightsError:
    tried = "".join(f"\n- {failure}" for failure in failures)
    if wanted.drive is None:
        what, remedy = wanted.file, "pass the path of a copy instead of the name"
        if wanted.repo:
            address = f"https://huggingface.co/{wanted.repo}/resolve/{wanted.revision or 'main'}/{wanted.file}"
            what, remedy = f"{what} of {wanted.repo}", f"get {address}, and {remedy}"
        if wanted.sha256:
            what, remedy = f"{what} (SHA-256 {wanted.sha256})", f"{remedy}, or put it into download_root"
        return WeightsError(f"{what} could not be found or downloaded. Try again; or {remedy}. Tried:{tried}")
    return AlphaWeightsNotFound(
        f"the alpha weights {wanted.file} (SHA-256 {wanted.sha256}) could not be found or downloaded. Get the "
        f"file from {OFFICIAL} (there linked as https://drive.google.com/file/d/{wanted.drive}/view) and put it into "
        "download_root, name a repository or folder that has it in ALPHA_CLIP_REPO, or pass its path as "
        f"alpha_vision_ckpt_pth=; pass None for plain CLIP, which ignores masks. Tried:{tried}"
    )
