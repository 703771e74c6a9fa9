"""A run -> a model repository on a hub: the model, its card, curves and recipe; never the checkpoints."""

from __future__ import annotations

import os

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from lvmae.errors import InputError, WorkError
from lvmae.runs import find_run

# What a run folder holds only for resuming the run.
_KEPT_HOME = ["checkpoints/*", "best/*", ".*", "*/.*", "events.*", "lvmae/*", "wandb/*"]

# The hub's library lets errors of its HTTP client through where nothing answers, and which client that is changes: httpx, httpx2.
_NO_ANSWER: tuple[type[BaseException], ...] = (
    OSError,
    *(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"),
)


def push_run(
    run: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Uploads a finished run to `repo` ("user/name"), made if need be; returns the address of the commit.

    Afterwards `AutoModel.from_pretrained(repo)` gives the model to anyone who has imported `lvmae`. The token comes from the
    argument or from where `hf auth login` left it; it is not written anywhere.

    Raises:
        InputError: the run is not finished, the name is not one, or there is no token.
        WorkError: the hub refused, or could not be reached.
    """
    folder = find_run(run)
    if not (folder / "README.md").is_file():
        raise InputError(f"{folder} has no README.md, so it is no finished run; `lvmae pretrain` makes one")
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=_KEPT_HOME, commit_message="Upload an LV-MAE run"
        )
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not the name of a repository, such as user/name: {error}") from None
    except LocalTokenNotFoundError:
        raise InputError("no token for the hub; run `hf auth login` first, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise InputError(f"the hub refused {repo} with status {status}: check the token and its rights") from None
        raise WorkError(f"the hub did not take {repo} (status {status}); rerun the same command to try again") from None
    except _NO_ANSWER as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WorkError(f"the hub could not be reached ({said}); rerun the same command to try again") from None
    return str(commit.commit_url)
