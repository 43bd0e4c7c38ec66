"""Models on the Hugging Face Hub, through its client: only the files of a bundle are read, and none of them holds code."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_score import __version__
from lightning_score.errors import InputError, one_line, printable, require
from lightning_score.runs.bundle import CONFIG, FILES, LARGEST_CONFIG, TOKEN, WEIGHTS

HUB = "hf://"
"""Before the name of a model on the Hub, where a path of this machine is expected, too."""
NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?/[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]{0,200}", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{40,64}")
"""A commit, or the content of a file; the client names files of its cache by it."""
LARGEST_OTHER = 1 << 26
"""Most bytes of a card or a picture."""
LOGIN = "log in by `hf auth login`, or set HF_TOKEN"
OFFLINE = (
    "it is not in the cache, and the Hub cannot be reached; connect once, which keeps it in the cache; or copy its folder "
    "from a machine where `pull {}` writes it, and give --ckpt_path FOLDER"
)
UNREACHABLE = ("Connect", "Timeout", "Proxy", "Network", "Offline")
"""In the names of the client's errors where there is no network."""


def parse_name(name: str) -> tuple[str, str | None]:
    """The name of a model on the Hub and its revision, if one is given: `hf://user/name@revision`.

    Raises:
        InputError: it is not such a name.
    """
    repository, at, revision = name.removeprefix(HUB).partition("@")
    require(
        NAME.fullmatch(repository) is not None and ".." not in repository and "--" not in repository,
        f"{name}: must be the name of a model on the Hub, as user/name",
    )
    require(not at or REVISION.fullmatch(revision) is not None, f"{name}: must end with a branch, tag or commit, as @main")
    return repository, revision or None


def name_on_hub(path: str | Path) -> str:
    """The name in a path that begins with `hf://`, of which pathlib leaves one slash; empty for other paths."""
    scheme, _, name = str(path).partition(":/")
    return f"{HUB}{name.lstrip('/')}" if scheme == HUB[:2] else ""


@cache
def found_on_hub(name: str) -> Path:
    """As `download`, once in a process, whose parts all see one commit."""
    return download(name)


def download(name: str, revision: str | None = None) -> Path:
    """The folder of a model of the Hub, in the client's cache: its files of one commit.

    Without a network that is what the cache has.

    Args:
        name: `user/name`, also with `hf://` before and `@revision` after it.
        revision: a branch, tag or commit; `main` by default.

    Raises:
        InputError: there is none, it may not be read, it is not a model of this package, or the Hub cannot be reached.
    """
    repository, given = parse_name(name)
    revision = revision or given
    require(revision is None or REVISION.fullmatch(revision) is not None, f"--revision {revision}: must be as main")
    hub = _client()
    with _explaining(repository, revision):
        found, commit, reached = None, revision, True
        for file in FILES:
            try:
                reached = reached and _is_reached(hub, repository, file, commit)
                found = Path(hub.hf_hub_download(repository, file, revision=commit, local_files_only=not reached))
            except hub.errors.EntryNotFoundError as error:
                if file in (CONFIG, WEIGHTS):
                    if not isinstance(error, hub.errors.LocalEntryNotFoundError):
                        raise
                    raise InputError(f"{HUB}{repository}: {OFFLINE.format(repository)}") from None
            else:
                commit = found.parent.name
    assert found is not None  # noqa: S101 - the config was
    return found.parent


def _is_reached(hub: ModuleType, repository: str, file: str, revision: str | None) -> bool:
    """Whether the Hub answers for a file; the client takes the names of files in its cache from the answer."""
    try:
        answer = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision))
    except hub.errors.HfHubHTTPError as error:
        if isinstance(error, hub.errors.EntryNotFoundError) or error.response.status_code < 500:
            raise
        return False
    except Exception:  # of the network, in each version of the client another one
        return False
    named = all(DIGEST.fullmatch(str(digest)) for digest in (answer.etag, answer.commit_hash))
    require(named, f"{HUB}{repository}: the server's answer for {file} has no digests of content and commit; it is not read")
    most = LARGEST_CONFIG if file == CONFIG else LARGEST_OTHER
    size = answer.size or 0
    require(file == WEIGHTS or size <= most, f"{HUB}{repository}: {file} has {size:,} bytes; at most {most:,} are read")
    return True


def upload(folder: Path, name: str, private: bool, message: str) -> str:
    """Uploads a bundle as one commit and returns its address; the repository is made if there is none.

    Raises:
        InputError: nobody is logged in or may not write there, or the repository has another kind of model, or is public
            although it is to be private.
    """
    repository, _ = parse_name(name)
    hub = _client()
    with _explaining(repository, writing=True):
        api, made = hub.HfApi(library_name="lightning_score", library_version=__version__), False
        try:
            found = api.model_info(repository)
        except hub.errors.RepositoryNotFoundError:
            api.create_repo(repository, private=private or None)
            made = True
        else:
            files = {each.rfilename for each in found.siblings or ()} - {".gitattributes", FILES[2]}
            require(
                not files or {CONFIG, WEIGHTS} <= files, f"{repository}: holds another kind of model; choose another name"
            )
            public = private and not found.private
            require(not public, f"--private: {repository} exists and is public; make it private on its page, or rename it")
        operations = [hub.CommitOperationAdd(file, folder / file) for file in FILES if (folder / file).is_file()]
        try:
            return str(api.create_commit(repository, operations, commit_message=message).commit_url)
        except BaseException:
            if made:
                print(f"{HUB}{repository}: made, and empty until an upload succeeds; push again, or delete it", flush=True)
            raise


def require_login() -> None:
    """Raises `InputError` if nobody is logged in to the Hub, or its client is not installed."""
    require(_client().get_token() is not None, f"push needs an account of the Hub: {LOGIN}")


def _client() -> Any:
    """The Hub's client.

    Raises:
        InputError: it is not installed.
    """
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError('the Hub\'s client is not installed; pip install "lightning_score[hub]"') from error
    return huggingface_hub


@contextmanager
def _explaining(repository: str, revision: str | None = None, writing: bool = False) -> Iterator[None]:
    """Within it, what the Hub or its client refuses is one line, without addresses or tokens.

    Raises:
        InputError: in place of the error.
    """
    errors, place = _client().errors, f"{HUB}{repository}"
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as error:
        page = f"{_client().constants.ENDPOINT}/{repository}"
        raise InputError(f"{place}: its owner asks for consent to conditions; agree on {page}, and {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{place}: has no revision {revision}; leave it out for the newest") from error
    except errors.RepositoryNotFoundError as error:
        allowed = "you may not write there" if writing else "it is private"
        raise InputError(f"{place}: there is no such model on the Hub, or {allowed}; check the name, and {LOGIN}") from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{place}: not a model of lightning_score, for it has no {CONFIG} or no {WEIGHTS}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        fixes = {401: LOGIN, 403: f"the token must have the permission; {LOGIN}", 429: "wait a few minutes"}
        reason = f"{status} {printable(error.server_message or '')[:200]}".strip()
        raise InputError(f"{place}: the Hub refuses ({_clean(reason)}); {fixes.get(status, 'try again later')}") from error
    except Exception as error:  # of the network, in each version of the client another one
        if isinstance(error, OSError) and error.filename:
            raise
        kind = type(error).__name__
        cause = "the Hub cannot be reached" if any(part in kind for part in UNREACHABLE) else "the transfer failed"
        fix = "write a folder by --output FOLDER, and push that later" if writing else "try again"
        raise InputError(f"{place}: {cause} ({kind}: {_clean(one_line(error, 200))}); {fix}") from error


def _clean(text: str) -> str:
    """A message without tokens, and addresses without queries, which may sign them."""
    return TOKEN.sub("...", re.sub(r"(https?://)(?:[^\s/@]*@)?([^\s?]*)\?[^\s'\")]*", r"\1\2", text))
