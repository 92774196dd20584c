"""The one place that talks to the Hugging Face Hub: files down, folders up, and each failure as one line with its remedy.

It knows nothing of this project but its errors, so that whatever is kept on the Hub, books as well as models, may use it.
Nothing that comes from a repository is executed or unpickled, and no name in it reaches outside the client's cache.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import InputError, first_line, shown

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOG_IN = "log in with `hf auth login`, or pass another token"
_CHUNK = 1 << 20
_REMEDIES = {
    404: "check the name, and that you may see it",
    409: "something else has written there meanwhile: do it again",
    412: "something else has written there meanwhile: do it again",
    413: "write smaller files, as with --max-shard-size",
    429: "wait some minutes and try again",
}


class Fetched(NamedTuple):
    """A file in the cache, and the commit it belongs to: ask for its siblings at that one."""

    path: Path
    commit: str


def is_repo_id(text: str) -> bool:
    """Whether `text` is written like a repository on the Hub, as in `owner/name`."""
    return _REPO_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def check_file_name(name: str) -> str:
    """`name` where it stays inside the folder it is relative to, on every system.

    Raises:
        InputError: it is absolute, climbs out, or holds what some system takes for a separator or drive.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:\0"):
        raise InputError(f"file name {shown(name)} may reach outside its folder; a repository must use plain relative names")
    return name


def download(
    repo_id: str, filename: str, *, revision: str | None = None, token: str | None = None, local_files_only: bool = False
) -> Fetched:
    """One file of a model repository, through the cache (HF_HOME); a broken connection is resumed.

    Where the Hub cannot be reached or refuses, a copy of that revision in the cache serves, as in all of its libraries.
    A file is compared with the digest that the Hub gave it, each time. A file system without symbolic links keeps no
    digests in the cache; there, the client's check of the size is all.

    Raises:
        InputError: repository, revision or file are missing, the token is refused, the Hub cannot be reached and the cache
            has no copy, the connection broke for good, or the content has another digest.
    """
    from huggingface_hub import HfApi

    check_file_name(filename)
    with _one_line_errors(repo_id, revision, filename):
        api = HfApi(token=token, library_name="sedialect")
        found = api.hf_hub_download(repo_id, filename, revision=revision, local_files_only=local_files_only)
        path = Path(found)
        _check_digest(path, _at(repo_id, revision, filename))
        return Fetched(path, path.parents[filename.count("/")].name)


def list_files(repo_id: str, *, revision: str | None = None, token: str | None = None) -> list[str]:
    """The names of all files of a model repository, as it gives them: check one before it becomes a path.

    Raises:
        InputError: repository or revision are missing, the token is refused, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _one_line_errors(repo_id, revision, None):
        return HfApi(token=token, library_name="sedialect").list_repo_files(repo_id, revision=revision)


def check_upload(repo_id: str, *, token: str | None = None) -> None:
    """Fail before hours of work where what comes of it could not be pushed: no such name, no valid token, no connection.

    Raises:
        InputError: that is so.
    """
    from huggingface_hub import HfApi

    if not is_repo_id(repo_id):
        raise InputError(f"--push-to is {shown(repo_id)}; write owner/name")
    with _one_line_errors(repo_id, None, None):
        HfApi(token=token, library_name="sedialect").whoami()


def upload_folder(
    repo_id: str,
    folder: Path,
    *,
    message: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    replaces: Sequence[str] = (),
) -> str:
    """All files of `folder` as one version of a model repository, which is made where there is none. Returns its address.

    Files arrive before the commit that shows them, so an interrupted upload shows nothing and can be repeated.

    Args:
        revision: a branch, made from main where there is none.
        replaces: files that are deleted from the repository where `folder` has none of that name.

    Raises:
        InputError: the token is missing, refused or may not write there, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="sedialect")
    with _one_line_errors(repo_id, revision, None):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            delete_patterns=list(replaces) or None,
        ).commit_url


def card(text: str, **metadata: Any) -> str:
    """A README.md for the Hub: `metadata` as its YAML head (None is left out), then `text`."""
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{text}"


def _at(repo_id: str, revision: str | None, filename: str | None) -> str:
    where = f"{repo_id!r} at {revision or 'main'!r}"
    return f"{filename} of {where}" if filename else where


def _check_digest(path: Path, what: str) -> None:
    """The cache names content by the digest from the Hub: SHA-256 of large files, git's SHA-1 of small ones.

    The client itself compares sizes alone. What differs is removed, or the cache would serve it for ever.
    """
    if not path.is_symlink():
        return
    blob = path.parent / os.readlink(path)
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        blob.unlink()
        path.unlink()
        raise InputError(f"{what} does not match its digest {blob.name[:12]}…; it was damaged and is removed: try again")


@contextmanager
def _one_line_errors(repo_id: str, revision: str | None, filename: str | None) -> Iterator[None]:
    """Turn what the client raises into one `InputError` that names repository, revision, file and remedy."""
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except InputError:
        raise
    except HFValidationError:
        raise InputError(f"{repo_id!r} is no repository on the Hub: write owner/name, as in me/my-book") from None
    except (HTTPError, OSError, RuntimeError, ValueError, LookupError) as error:
        raise InputError(_explain(error, repo_id, revision, filename)) from error


def _explain(error: Exception, repo_id: str, revision: str | None, filename: str | None) -> str:
    from huggingface_hub import errors

    where = _at(repo_id, revision, filename)
    if isinstance(error, errors.GatedRepoError):
        return f"repository {repo_id!r} is gated: accept its terms on its page, then {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no repository {repo_id!r} that you may see: check the name; if it is private, {_LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"repository {repo_id!r} has no revision {revision!r}; pass a branch, tag or commit that it has"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"there is no {where}; check that this is the right repository and revision"
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error, where)
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError):
            return _explain_status(cause, where)
        if not isinstance(cause, errors.OfflineModeIsEnabled):
            return f"{where} is not in the cache and the Hub cannot be reached: {first_line(cause)}; check the connection"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{where} is not in the cache, and offline mode forbids to download it; do so once while online"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"offline mode forbids to reach {where}; unset HF_HUB_OFFLINE"
    if isinstance(error.__cause__, errors.HfHubHTTPError):
        return _explain_status(error.__cause__, where)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"there is no token to write to {where} with; {_LOG_IN}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot keep {where} in the cache: {error.strerror}; set HF_HOME to a writable place with free space"
    if isinstance(error, LookupError):
        return f"the Hub's answer for {where} lacks {first_line(error)}; update huggingface_hub, or try again later"
    if isinstance(error, ValueError) and error.__cause__ is None:
        return f"the Hub's client does not take {where}: {first_line(error)}; mend what it names"
    return f"the connection to the Hub failed for {where}: {first_line(error)}; try again, it goes on where it can"


def _explain_status(error: Any, where: str) -> str:
    status = error.response.status_code
    said = error.server_message or error.response.reason_phrase
    if status == 401:
        return f"the Hub refuses the token for {where}: {first_line(said)}; {_LOG_IN}"
    if status == 403:
        return f"this token may not do that with {where}: {first_line(said)}; pass one with write access"
    remedy = _REMEDIES.get(status, "try again later" if status >= 500 else "mend what it says, or update huggingface_hub")
    return f"the Hub answers {status} for {where}: {first_line(said)}; {remedy}"
