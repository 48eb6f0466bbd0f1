"""Parse sources and download those on the Hub.

A source is `hf://google/gemma-3-12b-it@<commit>`, `hf://datasets/cais/mmlu@<commit>`, or a local folder.
"""

import glob
import json
import os
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import httpx
from huggingface_hub import constants, get_session, get_token, set_client_factory, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import validate_repo_id

from int4_qat.system import files
from int4_qat.system.errors import InputError, one_line

HUB_SOURCE = re.compile(r"hf://(?P<datasets>datasets/)?(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # in the client's order; it heeds both
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # in the client's order
TOKEN_CHARACTERS = re.compile(r"[!-~]+")
TOKEN_PAGE = "https://huggingface.co/settings/tokens"
SILENCE_SECONDS = 60
# The exceptions that the client raises when the Hub, the connection to it or the disk fails.
FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError, ValueError, ImportError, XetDownloadError)


class HubSource(NamedTuple):
    """A repository on the Hub at a pinned commit."""

    repository: str
    repository_type: str
    revision: str


def parse(source: str) -> HubSource | None:
    """Return the repository and commit of an `hf://` source, None for a local folder; raise InputError if malformed."""
    if not source.startswith("hf://"):
        return None
    match = HUB_SOURCE.fullmatch(source)
    if not match:
        raise InputError(f"source: expected hf://[datasets/]<owner>/<name>@<40-digit commit>, found {source}")
    try:
        validate_repo_id(match["repository"])
    except HFValidationError as error:
        raise InputError(f"{source}: {one_line(error)}") from None
    return HubSource(match["repository"], "dataset" if match["datasets"] else "model", match["revision"])


def download(
    source: HubSource,
    folder: Path,
    patterns: list[str],
    left_out: Sequence[str] = (),
    refuse_unusable: Callable[[Path], None] = lambda _: None,
) -> None:
    """Fetch the files at the pinned commit that match `patterns` and not `left_out`.

    The token comes from HF_TOKEN or the login.

    The files first go to a folder next to `folder`, on which refuse_unusable is called. A failure, also one of
    refuse_unusable, leaves them there, and the next call for the same commit fetches the rest. What was left of another
    commit is deleted.
    """
    name = f"{source.repository}@{source.revision}"
    partial = folder.with_name(f"{folder.name}.{name.replace('/', '--')}")
    for left in folder.parent.glob(f"{glob.escape(folder.name)}.*"):
        if left != partial:
            files.remove(left)
    prepare(name, get_token())
    limit_silence()
    with explained(name, partial):
        snapshot_download(
            source.repository,
            repo_type=source.repository_type,
            revision=source.revision,
            allow_patterns=patterns,
            ignore_patterns=list(left_out),
            local_dir=partial,
        )
    refuse_unusable(partial)
    with explained(name, partial):
        files.remove(partial / ".cache")
        partial.rename(folder)


@contextmanager
def explained(what: str, place: Path) -> Iterator[None]:
    """Turn whatever the client raises into an InputError of one line; `place` is where the Hub's files are kept."""
    try:
        yield
    except FAILURES as error:
        raise InputError(f"{what}: {explain(error, place)}") from None


def prepare(name: str, token: str | None) -> None:
    """Raise InputError if the environment forbids requests to the Hub or makes them impossible."""
    refuse_offline(name)
    refuse_odd_token(token)
    refuse_odd_endpoint()
    refuse_odd_certificates()
    try:
        get_session()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise InputError(
            f"HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: expected a usable proxy, found none ({one_line(error)})"
        ) from None


def refuse_offline(name: str) -> None:
    """Raise InputError if the environment forbids the client to ask the Hub; the message names the variable."""
    if constants.is_offline_mode():
        variable = next(variable for variable in OFFLINE_VARIABLES if os.environ.get(variable))
        raise InputError(f"{variable}={os.environ[variable]}: expected access to the Hub for {name}; unset {variable}")


def refuse_odd_token(token: str | None) -> None:
    """Raise InputError if a token is malformed; httpx would fail on it and print it."""
    if token and not TOKEN_CHARACTERS.fullmatch(token):
        raise InputError(
            f"{token_origin()}: expected a token of the Hub, found one with blanks or non-ASCII characters"
        )


def refuse_odd_endpoint() -> None:
    """Raise InputError if HF_ENDPOINT is not an HTTP or HTTPS address."""
    if not re.match("https?://[^/]", constants.ENDPOINT):
        raise InputError(
            f"HF_ENDPOINT: expected an address such as https://huggingface.co, found '{constants.ENDPOINT}'"
        )


def refuse_odd_certificates() -> None:
    """Raise InputError if SSL_CERT_FILE names no certificates; httpx would not say which file is missing."""
    path = os.environ.get("SSL_CERT_FILE")
    try:
        ssl.create_default_context(cafile=path or None)
    except OSError as error:
        raise InputError(f"SSL_CERT_FILE: expected a file with certificates at '{path}' ({error.strerror})") from None


def token_origin() -> str:
    """Return where the client has the token from: the name of a variable, or the login."""
    given = [variable for variable in TOKEN_VARIABLES if os.environ.get(variable, "").strip()]
    return given[0] if given else f"the login in {constants.HF_TOKEN_PATH}"


def limit_silence() -> None:
    """Give every request a time limit; the client would list a repository's files without one."""
    hooks = get_session().event_hooks

    def limit(request: httpx.Request) -> None:
        waits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {key: wait or SILENCE_SECONDS for key, wait in waits.items()}

    hooks = hooks | {"request": [*hooks["request"], limit]}
    set_client_factory(lambda: httpx.Client(event_hooks=hooks, follow_redirects=True, timeout=None))


def explain(error: Exception, place: Path) -> str:
    """Return in one line, without the token, why the Hub did not do as asked; `place` is where its files are kept."""
    causes = list(causes_of(error))
    answer = first(causes, HfHubHTTPError)
    if answer:
        found = explain_answer(answer)
    elif first(causes, httpx.HTTPError):
        found = explain_connection(causes)
    else:
        found = explain_other(causes, place)
    return without_token(found)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its chain of causes; contexts count too, since httpcore hides what the system said."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def first(causes: list[BaseException], kind: type | tuple[type, ...]) -> BaseException | None:
    """Return the first of some errors that is of a kind, or None."""
    return next((cause for cause in causes if isinstance(cause, kind)), None)


def explain_answer(error: HfHubHTTPError) -> str:
    """Return what the Hub answered and what to do about it."""
    response, status = error.response, error.response.status_code
    says = f" ({status}: {one_line(error.server_message or response.reason_phrase)})"
    token = f"the token of {token_origin()}" if "authorization" in response.request.headers else None
    known = response.headers.get("X-Error-Code") in ("GatedRepo", "RepoNotFound")
    if status == HTTPStatus.UNAUTHORIZED and token and not known:
        return f"the Hub refused {token}{says}: it is wrong or has expired; create a new one at {TOKEN_PAGE}"
    if isinstance(error, DisabledRepoError):
        return f"the Hub has disabled this repository{says}"
    if isinstance(error, GatedRepoError) and token:
        return f"it is gated, and {token} gives no access{says}: accept its terms on its Hub page with that account"
    if isinstance(error, GatedRepoError):
        return "it is gated: accept its terms on its Hub page, then set HF_TOKEN or run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return "the Hub has no such commit"
    if isinstance(error, RepositoryNotFoundError):
        reason = f"{token} has no access to it" if token else "it is private and no token is set (HF_TOKEN)"
        return f"the Hub has no such repository, or {reason}"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"the Hub has no file at {response.request.url.path}"
    if status == HTTPStatus.FORBIDDEN:
        return f"the Hub denied access{says}: {token or 'a request without a token (HF_TOKEN)'} has no permission"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return f"the Hub's rate limit is reached{says}: try again later{'' if token else ', with HF_TOKEN set'}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"the Hub has an internal error{says}: try again later"
    return f"the Hub refused the request{says}"


def explain_connection(causes: list[BaseException]) -> str:
    """Return why there was no answer: the certificate, the name, the proxy or a timeout, for example."""
    error = first(causes, httpx.HTTPError)
    hub = constants.ENDPOINT + (f" through the proxy of {proxy_variable()}" if proxy_variable() else "")
    certificate = first(causes, ssl.SSLCertVerificationError)
    if certificate:
        return (
            f"the certificate of {hub} is not trusted ({certificate.verify_message}): "
            "set SSL_CERT_FILE to a file with its certificate"
        )
    if first(causes, ssl.SSLError):
        return f"{hub} does not speak TLS as it should ({one_line(error)})"
    if first(causes, socket.gaierror):
        return f"{hub} could not be found: DNS does not know its name, as is usual without a network"
    if isinstance(error, httpx.ProxyError):
        return f"the proxy of {proxy_variable()} refused the connection to {constants.ENDPOINT} ({one_line(error)})"
    if isinstance(error, httpx.TimeoutException):
        return f"{hub} did not answer in time ({type(error).__name__})"
    if isinstance(error, httpx.ConnectError):
        return f"{hub} could not be reached ({one_line(error)})"
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return f"the connection to {hub} broke off ({described(error)})"
    return f"the request to {hub} failed ({described(error)})"


def explain_other(causes: list[BaseException], place: Path) -> str:
    """Return what went wrong on this side, or that something other than the Hub answered."""
    disk = next((cause for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if disk:
        return f"{disk.filename or place}: {disk.strerror}"
    foreign = first(causes, (json.JSONDecodeError, FileMetadataError))
    if foreign:
        return f"{constants.ENDPOINT} (HF_ENDPOINT) does not answer as the Hub does ({described(foreign)})"
    return described(causes[0])


def proxy_variable() -> str | None:
    """Return the name of the variable that sets a proxy for the Hub, or None; its value may hold a password."""
    endpoint = httpx.URL(constants.ENDPOINT)
    if urllib.request.proxy_bypass(endpoint.host):
        return None
    names = (f"{endpoint.scheme}_proxy", "all_proxy")
    return next((name for name in os.environ if name.lower() in names and os.environ[name]), None)


def described(error: BaseException) -> str:
    """Return the type of an error and its message."""
    return f"{type(error).__name__}: {one_line(error)}"


def without_token(text: str) -> str:
    """Return a text with the token masked, since servers and libraries may repeat what was sent to them."""
    token = get_token()
    return text.replace(token, "<token>") if token else text
