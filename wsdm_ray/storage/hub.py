"""Repositories of the Hugging Face Hub: their names, and their files as the Hub's own library caches them.

    OWNER/NAME[@REVISION]              a model, where no local folder has this name
    hf://OWNER/NAME[@REVISION]         a model
    hf://datasets/OWNER/NAME...        a data set (`hub_datasets`)

A revision is a branch, a tag or a commit. It is resolved to a commit once; only then is anything fetched, so
that every process of a run reads the same files. Token, endpoint, cache and offline mode are those of
`huggingface_hub`: HF_TOKEN or its login file, HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE. Safetensors only.
"""

import contextlib
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wsdm_ray.errors import StorageError, WsdmRayError
from wsdm_ray.failures import chain

__all__ = [
    "HUB",
    "OFFLINE_BY_US",
    "Repository",
    "commit_of",
    "fetch",
    "hub_model",
    "hub_name",
    "list_repository",
    "local_file",
    "parse_repository",
]

logger = logging.getLogger(__name__)

HUB = "hf://"

OFFLINE_BY_US = "WSDM_RAY_SET_OFFLINE"
"""Set beside HF_HUB_OFFLINE where this package set that, so that it is not taken for the user's word."""

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
"""What of a model's repository is fetched: no pickles, and nothing within folders."""

NOT_OF_A_MODEL = ("*/*", "consolidated*.safetensors")

SHORT_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@\S+)?")

CONNECT_SECONDS = 5

COMMIT = re.compile(r"[0-9a-f]{40}")

switch = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository at a revision, and a place in it.

    kind: `model` or `dataset`. revision: None for the default branch. path: empty for the whole.
    given: as the user wrote it.
    """

    kind: str
    id: str
    revision: str | None
    path: str
    given: str

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def uri(self, path: str | None = None) -> str:
        """The repository, or a file of it, as hf:// names it."""
        kind = "datasets/" if self.kind == "dataset" else ""
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        inner = self.path if path is None else path
        return f"{HUB}{kind}{self.id}{revision}" + (f"/{inner}" if inner else "")


def hub_name(folder: str) -> str | None:
    """`folder` with hf:// where it names a model of the Hub; None where it is a folder here or in a store.

    OWNER/NAME is a local folder where there is one of this name, or where OWNER is one.
    """
    if folder.startswith(HUB):
        return folder
    if SHORT_NAME.fullmatch(folder) is None or os.path.exists(folder) or os.path.isdir(folder.split("/")[0]):
        return None
    return HUB + folder


def hub_model(folder: str) -> Repository | None:
    """The repository of a model that `folder` names; None where it is a folder here or in a store.

    Raises:
        StorageError: it names a data set, or a file within a model.
    """
    name = hub_name(folder)
    if name is None:
        return None
    model = parse_repository(name, folder)
    if model.kind != "model" or model.path:
        raise StorageError(f"{folder}: is no model; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return model


def parse_repository(uri: str, given: str) -> Repository:
    """The repository and the place that an hf:// URI names.

    Args:
        given: what the user wrote, for messages.

    Raises:
        StorageError: it is no such URI, or of neither a model nor a data set.
    """
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri

    try:
        parsed = parse_hf_uri(uri)
    except HfUriError as error:
        raise StorageError(f"{given}: {' '.join(str(error).split())}") from error
    if parsed.type not in ("model", "dataset"):
        raise StorageError(f"{given}: is a {parsed.type}; write hf://OWNER/NAME or hf://datasets/OWNER/NAME")
    return Repository(
        kind=parsed.type, id=parsed.id, revision=parsed.revision, path=parsed.path_in_repo, given=given
    )


@functools.cache
def commit_of(repository: Repository) -> Repository:
    """The same repository at its revision's commit: of now, or without a network of when it was fetched.

    All of a process takes the commit that it found first.

    Raises:
        StorageError: there is no such repository or revision for this user, or the Hub cannot be reached.
    """
    import httpx2

    if repository.is_pinned:
        return repository
    with online(), errors_for_hub(repository):
        offline = offline_by_user()
        if not offline:
            try:
                reach(repository)
            except httpx2.TransportError:
                offline = True
        found = client().resolve_revision(
            repository.id, repo_type=repository.kind, revision=repository.revision, local_files_only=offline
        )
    return replace(repository, revision=found.resolved)


def fetch(repository: Repository, patterns: Sequence[str] = MODEL_FILES, *, only_cached: bool = False) -> str:
    """The local folder of a pinned repository with the files that match `patterns`, fetched where they lack.

    Args:
        only_cached: ask no hub.

    Raises:
        StorageError: it cannot be had; the message says what to download.
    """
    import httpx2
    from huggingface_hub import snapshot_download

    assert repository.is_pinned
    options: dict[str, Any] = {
        "repo_type": repository.kind,
        "revision": repository.revision,
        "allow_patterns": list(patterns),
        "ignore_patterns": list(NOT_OF_A_MODEL) if repository.kind == "model" else None,
    }
    folder = None
    with online(), errors_for_hub(repository):
        with contextlib.suppress(OSError):  # what is whole here needs no request, and no words
            folder = snapshot_download(repository.id, **options, local_files_only=True)
        if folder and (only_cached or offline_by_user() or has_listing(repository)):
            return folder
        if only_cached:
            raise StorageError(
                f"{repository.given}: is a model of the Hub that is not whole in this machine's cache, and "
                f"nobody asked to fetch it; use --base {repository.uri()}"
            )
        try:
            reach(repository)
        except httpx2.TransportError:
            if folder:  # laid out by another tool, which kept no list of the files
                return folder
            raise
        logger.info("hub: fetching %s", repository.uri())
        return snapshot_download(repository.id, **options, endpoint=endpoint())


def list_repository(repository: Repository) -> list[str]:
    """Paths of the files of a pinned repository, sorted; without a network those that are here.

    Raises:
        StorageError: the repository cannot be had.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    # It says so where a repository has none of these.
    logging.getLogger("huggingface_hub._snapshot_download").setLevel(logging.ERROR)
    folder = fetch(repository, ("README.md", ".huggingface.yaml", "dataset_infos.json"))
    try:
        tree = get_cached_repo_tree(repository.id, repo_type=repository.kind, revision=repository.revision)
    except CachedRepoTreeNotFoundError:
        return sorted(
            os.path.relpath(os.path.join(root, name), folder)
            for root, _, names in os.walk(folder)
            for name in names
        )
    return sorted(file.path for file in tree)


def local_file(uri: str) -> str:
    """The local file of an hf:// URI of a file at a commit, fetched where it is not in the cache.

    Raises:
        StorageError: the URI has no commit or no file, or the file cannot be had.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    file = parse_repository(uri, uri)
    if not file.is_pinned or not file.path:
        raise StorageError(f"{uri}: hf:// is for reading, by --input, --base, --model and --adapter")
    arguments: dict[str, Any] = {"repo_type": file.kind, "revision": file.revision}
    found = try_to_load_from_cache(file.id, file.path, **arguments)
    if isinstance(found, str):
        return found
    with online(), errors_for_hub(file):
        return hf_hub_download(file.id, file.path, **arguments, endpoint=endpoint())


def has_listing(repository: Repository) -> bool:
    """Whether the cache knows all files of a pinned repository; else what is there may be a part."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        get_cached_repo_tree(repository.id, repo_type=repository.kind, revision=repository.revision)
    except CachedRepoTreeNotFoundError:
        return False
    return True


# How the library is used


def client() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="wsdm_ray")


def endpoint() -> str | None:
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


def offline_by_user() -> bool:
    """Whether the user's environment says that no hub is to be asked."""
    names = ["TRANSFORMERS_OFFLINE"]
    if OFFLINE_BY_US not in os.environ:
        names.append("HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def reach(repository: Repository) -> None:
    """Ask for the repository, and wait for seconds: the library alone would wait for minutes."""
    client().repo_info(
        repository.id, repo_type=repository.kind, revision=repository.revision, timeout=CONNECT_SECONDS
    )


@contextlib.contextmanager
def online() -> Iterator[None]:
    """Let the library ask the Hub, which is off elsewhere in this package, unless the user said no."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty():
        disable_progress_bars()
    with switch:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, offline_by_user()
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def errors_for_hub(repository: Repository) -> Iterator[None]:
    """Turn what the library raises into a `StorageError` of one line: what, where and the remedy."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

    try:
        yield
    except WsdmRayError:
        raise
    except HFValidationError as error:
        raise StorageError(f"{repository.given}: {error}") from error
    except (OSError, httpx2.HTTPError, RevisionResolutionError) as error:
        cause = next((each for each in chain(error) if isinstance(each, HfHubHTTPError)), None)
        said = refused(repository, cause) if cause is not None else unreachable(repository, error)
        raise StorageError(f"{repository.given}: {said}") from error


def refused(repository: Repository, error: Any) -> str:
    """What the Hub's refusal means, and what to do."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    status, kind = error.response.status_code, what(repository)
    page = f"{address()}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.id}"
    sign_in = "set HF_TOKEN or run `hf auth login`" if get_token() is None else "check your token's rights"
    here = no_folder(repository)
    if isinstance(error, RevisionNotFoundError):
        return f"the {kind} has no revision {repository.revision}; give a branch, a tag or a commit"
    if isinstance(error, EntryNotFoundError):
        return f"the {kind} has no such file; check the path"
    if isinstance(error, GatedRepoError):
        return f"access to the {kind} is gated; accept its terms at {page} and {sign_in}"
    if status == 404:
        return f"{here}no such {kind} on the Hub, or a private one; check the name, or {sign_in}"
    if status == 401:
        return f"{here}no such {kind} on the Hub for this user; check the name, or {sign_in}"
    if status == 403:
        return f"the Hub gives no access to the {kind}; ask for it at {page}, or {sign_in}"
    if status == 429:
        return f"the Hub answers that there were too many requests; wait a while, or {sign_in}"
    return f"the Hub at {address()} answers {status}; try again later, or check HF_ENDPOINT"


def unreachable(repository: Repository, error: BaseException) -> str:
    """Why there is no file, and how to bring it here."""
    from huggingface_hub import constants

    said = next((each for each in chain(error) if isinstance(each, OSError) and each.errno), None)
    if isinstance(said, OSError) and (said.filename or "").startswith(constants.HF_HUB_CACHE):
        return f"{said.strerror}: {said.filename}; set HF_HUB_CACHE to a folder of your own with free space"
    why = "HF_HUB_OFFLINE is set" if offline_by_user() else f"the Hub at {address()} cannot be reached"
    options = " --repo-type dataset" if repository.kind == "dataset" else ""
    options += f" --revision {repository.revision}" if repository.revision else ""
    return (
        f"{no_folder(repository)}{why}, and the {what(repository)} is not whole in the cache "
        f"{constants.HF_HUB_CACHE}; where there is a network run `hf download {repository.id}{options} "
        "--local-dir DIR`, and give DIR instead"
    )


def no_folder(repository: Repository) -> str:
    """What a user who meant a folder must read first."""
    return "" if repository.given.startswith(HUB) else "no such folder here; "


def what(repository: Repository) -> str:
    return "data set" if repository.kind == "dataset" else "model"


def address() -> str:
    from huggingface_hub import constants

    return endpoint() or constants.ENDPOINT
