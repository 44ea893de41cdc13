"""Models on the Hugging Face Hub: addresses and download of their files."""

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
FILES = (WEIGHTS, CONFIG, CARD)  # of a shared model

LOG_IN = "log in with `hf auth login`"


def download(address: str) -> str:
    """Return the local path of a file on the Hub, which is cached by huggingface_hub.

    Args:
        address: hf://USER/NAME for the weights of a model; @REVISION (a branch, tag or commit) and
            /FILE may follow.

    Raises:
        UserError: the address is invalid, does not exist, or the Hub cannot be reached.
    """
    uri, api = parsed(address), HfApi()
    with errors_in_one_line(address, api):
        return api.hf_hub_download(uri.id, uri.path_in_repo or WEIGHTS, revision=uri.revision)


def parsed(address: str) -> HfUri:
    """Parse hf://USER/NAME[@REVISION][/FILE].

    Raises:
        UserError: the address is invalid, or not that of a model.
    """
    try:
        uri = parse_hf_uri(address)
    except HfUriError as error:
        raise UserError(f"cannot use {address}: {' '.join(str(error).split())}") from None
    # Revision and file name are part of the path in huggingface_hub's cache; ".." would leave it.
    parts = re.split(r"[/\\]", f"{uri.revision or 'main'}/{uri.path_in_repo or WEIGHTS}")
    if not address.isprintable() or {"", ".", ".."} & set(parts):
        raise UserError(
            f"cannot use {one_line(address)}: its revision and file may have no part that is "
            "empty, . or .."
        )
    if uri.type != "model":
        raise UserError(f"{address} is a {uri.type}; give hf://USER/NAME of a model")
    return uri


@contextlib.contextmanager
def errors_in_one_line(address: str, api: HfApi) -> Iterator[None]:
    """Turn the exceptions of huggingface_hub about an address into a UserError.

    The order of the handlers matters, since some of these types are subclasses of others.
    """
    try:
        yield
    except UserError:
        raise
    except GatedRepoError:
        page = f"{api.endpoint}/{parsed(address).id}"
        reason = f"its owner asks for consent: give it at {page}; {LOG_IN}"
    except RepositoryNotFoundError:
        reason = f"there is no such repository on {api.endpoint}, or it is private: {LOG_IN}"
    except RevisionNotFoundError:
        reason = "it has no such branch, tag or commit"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cause = _first_line(error.__cause__ or error)
        reason = f"{api.endpoint} cannot be reached, and it was not downloaded before ({cause})"
    except EntryNotFoundError:
        reason = f"it has no {parsed(address).path_in_repo or WEIGHTS}"
    except HfHubHTTPError as error:
        reason = f"{api.endpoint} answered: {error.server_message or _first_line(error)}"
        if error.response.status_code in (401, 403):  # unauthorized, forbidden
            reason += f": {LOG_IN} with a token that has this permission"
    except (HTTPError, OSError, RuntimeError) as error:
        cause = _first_line(error.__cause__ or error)
        reason = f"the transfer to or from {api.endpoint} failed ({cause})"
    except ValueError as error:  # the Hub rejects the model card
        reason = " ".join(str(error).split())
    else:
        return
    raise UserError(f"cannot use {address}: {reason}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
