"""Sources: `hf://google/gemma-3-12b-it@<commit>`, `hf://datasets/cais/mmlu@<commit>`, or a local folder."""

import re
from pathlib import Path
from typing import NamedTuple

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from int4_qat import files
from int4_qat.errors import InputError

IGNORED = ["consolidated*"]  # the same weights again, as Mistral's repositories have them
HUB_SOURCE = re.compile(r"hf://(?P<datasets>datasets/)?(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


class HubSource(NamedTuple):
    repository: str
    repository_type: str
    revision: str


def parse(source: str) -> HubSource | None:
    """The repository and commit of an `hf://` source; None for a local folder."""
    if not source.startswith("hf://"):
        return None
    match = HUB_SOURCE.fullmatch(source)
    if not match:
        raise InputError(f"{source}: expected hf://[datasets/]<owner>/<name>@<40-digit commit>")
    return HubSource(match["repository"], "dataset" if match["datasets"] else "model", match["revision"])


def download(source: HubSource, folder: Path, patterns: list[str]) -> None:
    """Fetch the files that match `patterns`, at the pinned commit; the token comes from HF_TOKEN or the login.

    They come to a folder beside `folder` first, where a failure leaves them: the next call fetches the rest.
    """
    name = f"{source.repository}@{source.revision}"
    partial = folder.with_name(f"{folder.name}.{name.replace('/', '--')}")
    try:
        snapshot_download(
            source.repository,
            repo_type=source.repository_type,
            revision=source.revision,
            allow_patterns=patterns,
            ignore_patterns=IGNORED,
            local_dir=partial,
        )
    except GatedRepoError:
        raise InputError(
            f"{name} is gated: accept its terms on its Hub page, then set HF_TOKEN or run `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{name}: the Hub has no such commit") from None
    except RepositoryNotFoundError:
        raise InputError(f"{name}: the Hub has no such repository, or it is private and HF_TOKEN is not set") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        raise InputError(f"{name}: the Hub could not be reached ({type(error).__name__})") from None
    except OSError as error:
        raise InputError(f"{partial}: {error.strerror or error}") from None
    files.remove(partial / ".cache")
    partial.rename(folder)
