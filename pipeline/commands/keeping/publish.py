"""`posttrain publish`: a model on the Hugging Face Hub, as `posttrain export` writes it, with its card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from posttrain.pipeline.commands.keeping.export import ADAPTER_FILE, export_model
from posttrain.pipeline.runs.store import find_artifact
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import EXIT_DONE, PosttrainError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
TOKEN_HELP = "run `hf auth login`, or set HF_TOKEN to a token that may write"


def publish(root: Path, text: str, repository: str, merge: bool, public: bool) -> int:
    """Write the model that ``text`` names to a repository of the Hub, made where it is not there; return the exit code.

    A new repository is private unless it is to be ``public``. What an earlier version had and this one has not is
    deleted; the repository's history keeps it. Raises UsageError for what others could not load, or without a token,
    and PosttrainError where the Hub does not take it.
    """
    artifact = find_artifact(root, text)
    _require_name(repository)
    _asked(repository, lambda hub: hub.whoami())  # before a large model is written for nothing
    with tempfile.TemporaryDirectory(prefix="posttrain-publish-") as folder:
        model = Path(folder) / repository.rpartition("/")[2]
        code = export_model(root, str(artifact), model, merge)
        if code != EXIT_DONE:
            return code
        _require_reachable_base(model, text)
        manifest = read_manifest(artifact)
        url = _upload(model, repository, public, f"{manifest.stage}, digest {manifest.digest[:12]}")
    print(f"published: {url}\nload it again with train.base.hub_name={repository}")
    return EXIT_DONE


def _require_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"{repository}: {str(error).splitlines()[0]}") from None
    if repository.count("/") != 1:
        raise UsageError(f"{repository}: whose? give USER/NAME, or ORGANISATION/NAME")


def _require_reachable_base(model: Path, text: str) -> None:
    """Raise UsageError for an adapter whose base is an artifact of this store, which nobody else has."""
    if not (model / ADAPTER_FILE).is_file():
        return
    config = json.loads((model / ADAPTER_FILE).read_text(encoding="utf-8"))
    if config.get("revision") is None:
        raise UsageError(
            f"{text}: its base, {config['base_model_name_or_path']}, is on this machine alone; give --merge "
            "for a model that needs none"
        )


def _upload(model: Path, repository: str, public: bool, message: str) -> str:
    def upload(hub: HfApi) -> str:
        hub.create_repo(repository, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=model, commit_message=message, delete_patterns="*")
        return f"{hub.endpoint}/{repository}"

    return _asked(repository, upload)


def _asked(repository: str, ask: Callable[[HfApi], T]) -> T:
    """Return what the Hub answers; raise UsageError or PosttrainError, in one line, where it does not."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        return ask(hub)
    except OfflineModeIsEnabled:
        raise UsageError("HF_HUB_OFFLINE is set, so the Hub is not asked; unset it") from None
    except LocalTokenNotFoundError:
        raise UsageError(f"{repository}: no token of the Hub; {TOKEN_HELP}") from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UsageError(f"{repository}: the Hub says {error.response.status_code}; {TOKEN_HELP}") from None
        raise PosttrainError(f"{repository}: {str(error).splitlines()[0]}") from None
    except (OSError, httpx2.HTTPError) as error:
        raise PosttrainError(f"{hub.endpoint}: {type(error).__name__}: {error}; run it again") from None
