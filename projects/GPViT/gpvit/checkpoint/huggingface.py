"""Models on the Hugging Face Hub: their addresses, and their files."""

import contextlib
import re
from collections.abc import Iterator

from huggingface_hub import HfApi, HfUri, parse_hf_uri
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HfUriError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..utils.errors import UserError
from ..utils.text import one_line

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"


FILES = (WEIGHTS, CONFIG, CARD)


LOG_IN = "`hf auth login` logs in"


def download(address: str) -> str:
    """The path on this machine of a file on the Hub, which is kept in huggingface_hub's cache.

    Args:
        address: hf://USER/NAME for the weights of a model; @REVISION (branch, tag or commit) and /FILE may follow.

    Raises:
        UserError: this is no such address, there is nothing there, or the Hub cannot be reached.
    """
    uri, api = parsed(address), HfApi()
    with errors_in_one_line(address, api):
        return api.hf_hub_download(uri.id, uri.path_in_repo or WEIGHTS, revision=uri.revision)


def parsed(address: str) -> HfUri:
    """The parts of hf://USER/NAME[@REVISION][/FILE]. Raises a UserError if it is none, or not of a model."""
    try:
        uri = parse_hf_uri(address)
    except HfUriError as error:
        raise UserError(f"cannot use {address}: {' '.join(str(error).split())}") from None
    # huggingface_hub's cache has files under these names.
    parts = re.split(r"[/\\]", f"{uri.revision or 'main'}/{uri.path_in_repo or WEIGHTS}")
    if not address.isprintable() or {"", ".", ".."} & {*parts}:
        raise UserError(
            f"cannot use {one_line(address)}: its revision and file may have no part that is empty, . or .."
        )
    if uri.type != "model":
        raise UserError(f"{address} is a {uri.type}; give hf://USER/NAME of a model")
    return uri


@contextlib.contextmanager
def errors_in_one_line(address: str, api: HfApi) -> Iterator[None]:
    """Turns what huggingface_hub raises about an address into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except GatedRepoError:
        reason = (
            f"its owner asks for consent: give it at {api.endpoint}/{parsed(address).id}; {LOG_IN}"
        )
    except RepositoryNotFoundError:
        reason = f"there is no such repository on {api.endpoint}, or it is private: {LOG_IN}"
    except RevisionNotFoundError:
        reason = "it has no such branch, tag or commit"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = f"{api.endpoint} cannot be reached, and it was not downloaded before ({_first_line(error.__cause__ or error)})"
    except EntryNotFoundError:
        reason = f"it has no {parsed(address).path_in_repo or WEIGHTS}"
    except HfHubHTTPError as error:
        hint = (
            f": {LOG_IN} with a token that may do this"
            if error.response.status_code in (401, 403)
            else ""
        )
        reason = f"{api.endpoint} answered: {error.server_message or _first_line(error)}{hint}"
    except (HTTPError, OSError, RuntimeError) as error:
        reason = f"the transfer to or from {api.endpoint} failed ({_first_line(error.__cause__ or error)})"
    except ValueError as error:  # a card that the Hub refuses
        reason = " ".join(str(error).split())
    else:
        return
    raise UserError(f"cannot use {address}: {reason}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
