"""A saved model onto the Hugging Face Hub: private unless the user says otherwise, and never silently public."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprachbund.checksums import check_model
from sprachbund.errors import InputError, SprachbundError, brief
from sprachbund.export.card import write_card
from sprachbund.files import model_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# What may lie in a model's folder and belongs to nobody else: locks, half-written files, what hides behind a dot, and
# pickled training state (a model is safetensors only).
LEFT_OUT = (
    *("lock", "*.lock", "*.tmp", ".*", "*/.*", "__pycache__/*", "*/__pycache__/*"),
    *("checkpoint-*/*", "*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt"),
)


@dataclass(frozen=True)
class Pushed:
    """Where a model went, whether only its owner can see it, and which files were sent."""

    url: str
    private: bool
    files: tuple[str, ...]


def push(
    source: Path,
    repo_id: str,
    *,
    public: bool = False,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Upload a run's model, or the model in a folder, to the repository OWNER/NAME, which is made where there is none.

    A new repository is private unless `public`; an existing one keeps its visibility. `revision` is a branch, made
    where there is none. A folder without a model card gets one first. `endpoint`: another server than the Hub's (None:
    what HF_ENDPOINT says).

    Raises InputError for a folder without a model, a bad repository id, no token, one that the server refuses, and a
    public repository without `public`; DamagedError for weights of a run that have changed since it wrote them;
    SprachbundError where the server cannot be reached or fails.
    """
    folder = model_folder(source)
    _check_repo_id(repo_id)
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise InputError("no access token for the Hub was found; run `hf auth login`, or set HF_TOKEN")
    check_model(folder)
    if not (folder / "README.md").exists():
        write_card(folder, run=source if folder != source else None)
    api = HfApi(endpoint=endpoint, token=token)
    with _one_sentence(repo_id, api.endpoint):
        url = _repository(api, repo_id, public=public)
        private = bool(api.model_info(repo_id).private)
        if not private and not public:
            raise InputError(
                f"{repo_id} is a public repository; give --public to publish this model there, or another REPO_ID"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message or "Model uploaded with sprachbund",
            ignore_patterns=list(LEFT_OUT),
        )
    return Pushed(f"{url}/tree/{revision}" if revision else url, private, files_of(folder))


def model_folder(source: Path) -> Path:
    """Return the folder with the model: a run's `model`, or `source` itself.

    Raises InputError where there is no model in safetensors.
    """
    if not source.is_dir():
        raise InputError(f"{source} is no folder; give the folder of a run or of a saved model")
    folder = model_of(source)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(f"{source} holds no model (config.json and safetensors); give a saved one, or a run")
    return folder


def files_of(folder: Path) -> tuple[str, ...]:
    """Return the files of a model's folder that are uploaded, in alphabetical order."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple(filter_repo_objects(names, ignore_patterns=list(LEFT_OUT)))


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"REPO_ID {repo_id!r} is not valid ({brief(error)}); give OWNER/NAME") from None
    if "/" not in repo_id:
        raise InputError(f"REPO_ID {repo_id!r} names no owner; give OWNER/{repo_id}")


def _repository(api: "HfApi", repo_id: str, *, public: bool) -> str:
    """Make the repository, unless there is one, which is left as it is; returns its address."""
    return str(api.create_repo(repo_id, private=not public, exist_ok=True))


@contextmanager
def _one_sentence(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one sentence."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    try:
        yield
    except SprachbundError:
        raise
    except OfflineModeIsEnabled:
        raise InputError("the Hub's client is offline, since HF_HUB_OFFLINE is set; unset it to push") from None
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: the uploader of large files
        raise _explained(error, repo_id, endpoint) from error


def _explained(error: Exception, repo_id: str, endpoint: str) -> SprachbundError:
    response: Any = getattr(error, "response", None)
    said = " ".join((getattr(error, "server_message", None) or str(error)).split())[:200].rstrip(".")
    if response is None:
        if isinstance(error, ValueError):
            return InputError(f"{endpoint} does not take the model ({said}); correct that and push again")
        return SprachbundError(f"{endpoint} cannot be reached ({said}); try again when it can: nothing is lost")
    status = int(response.status_code)
    reasons = {
        401: "does not accept the access token (401); run `hf auth login`, or set HF_TOKEN, with one that may write",
        403: f"does not let this token write to {repo_id} (403); give an OWNER of yours, or a token that may write",
        404: f"knows no {repo_id} that this token may write to (404); check OWNER and the --revision",
    }
    if reason := reasons.get(status):
        return InputError(f"{endpoint} {reason}")
    if 400 <= status < 500 and status != 429:
        return InputError(f"{endpoint} refuses the upload to {repo_id} ({status}: {said})")
    return SprachbundError(f"{endpoint} failed while {repo_id} was uploaded ({status}: {said}); push again later")
