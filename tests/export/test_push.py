"""`push` against a server on this machine that plays the Hub: what is asked of it, and what arrives."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from sprachbund.errors import InputError, SprachbundError
from sprachbund.export.hub import files_of, model_folder, push

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64,
}  # fmt: skip
SENT = ("README.md", "config.json", "model.safetensors", "tokenizer.json")


@dataclass
class FakeHub:
    """The state of the server: repositories by id (is it private?), refusals, and what was asked of it in order."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)  # the last part of a call's path -> status
    calls: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    message: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, Any]]:
        """Do what the Hub does on a call."""
        path = path.partition("?")[0]
        if path.startswith(("/api/models/", "/api/repos/")):  # not what the client asks for its own purposes
            self.calls.append(f"{method} {path}")
            self.tokens.add(token)
        name = path.rpartition("/")[2]
        for part, status in self.refuse.items():
            if part in path:
                return status, {"error": "refused by the test"}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            self.created.append(wanted)
            repo_id = f"{wanted['organization']}/{wanted['name']}"
            known = repo_id in self.private
            private = wanted.get("private") is True or wanted.get("visibility") == "private"
            self.private.setdefault(repo_id, private)
            return (409 if known else 200), {"url": f"{self.url}/{repo_id}"}
        if "/branch/" in path:
            self.branches.append(name)
            return 200, {}
        if "/preupload/" in path:
            asked = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]}
        if "/commit/" in path:
            self._commit(body)
            repo_id = path.removeprefix("/api/models/").partition("/commit/")[0]
            return 200, {"commitUrl": f"{self.url}/{repo_id}/commit/{'1' * 40}", "commitOid": "1" * 40}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        repo_id = path.removeprefix("/api/models/")
        if repo_id in self.private:
            return 200, {"id": repo_id, "private": self.private[repo_id], "siblings": []}
        return 404, {"error": f"no call of this test: {path}"}

    def _commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.message = line["value"]["summary"]
            else:
                assert line["key"] == "file"
                assert line["value"]["encoding"] == "base64"
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A server at HF_ENDPOINT, and a token for it."""
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, content = fake.answer(self.command, self.path, body, self.headers.get("authorization"))
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_HEAD = _serve

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        fake.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", fake.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield fake
        server.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A saved model without a card, with things beside it that are nobody's business."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "tokenizer.json").write_text('{"ä": "ö"}', encoding="utf-8")
    for name in ("lock", ".model.tmp", "x.tmp", "optimizer.pt", ".env"):
        (folder / name).write_text("secret")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10/trainer_state.json").write_text("{}")
    return folder


@pytest.mark.parametrize("fast", [True, False], ids=["with hf_xet", "without hf_xet"])
def test_every_file_arrives_in_a_private_repository(
    fast: bool, hub: FakeHub, model: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
    said = cli("push", model, "me/mine", "--message", "First")
    assert (said.status, said.out) == (0, f"{hub.url}/me/mine (private, 4 files)\n"), said.err
    assert [(wanted["organization"], wanted["name"]) for wanted in hub.created] == [("me", "mine")]
    assert hub.private == {"me/mine": True}
    assert hub.calls == [
        "POST /api/repos/create",
        "GET /api/models/me/mine",
        "POST /api/models/me/mine/preupload/main",
        "POST /api/models/me/mine/commit/main",
    ]
    assert tuple(sorted(hub.files)) == SENT
    assert hub.files == {name: (model / name).read_bytes() for name in SENT}
    assert hub.message == "First"
    assert hub.tokens == {"Bearer hf_of_the_test"}
    assert hub.files["README.md"].startswith(b"---\n")  # a card is written where there is none


def test_a_card_of_the_users_own_is_left_alone(hub: FakeHub, model: Path) -> None:
    (model / "README.md").write_text("# mine\n")
    push(model, "me/mine")
    assert hub.files["README.md"] == b"# mine\n"


def test_public_is_what_the_user_says(hub: FakeHub, model: Path) -> None:
    pushed = push(model, "me/mine", public=True)
    assert hub.private == {"me/mine": False}
    assert (pushed.private, pushed.files) == (False, SENT)


def test_nothing_goes_to_a_public_repository_unasked(hub: FakeHub, model: Path, cli: CommandLine) -> None:
    hub.private["me/known"] = False
    said = cli("push", model, "me/known")
    assert said.status == 2
    assert said.last == (
        "sprachbund: me/known is a public repository; give --public to publish this model there, or another REPO_ID"
    )
    assert not hub.files
    assert not any("commit" in call or "preupload" in call for call in hub.calls)
    assert cli("push", model, "me/known", "--public").status == 0
    assert tuple(sorted(hub.files)) == SENT


def test_an_existing_private_repository_stays_private(hub: FakeHub, model: Path, cli: CommandLine) -> None:
    hub.private["me/known"] = True
    said = cli("push", model, "me/known", "--public")
    assert said.status == 0
    assert "stays private" in said.err
    assert said.out.endswith("/me/known (private, 4 files)\n")
    assert hub.private == {"me/known": True}


def test_a_branch_is_made_and_used(hub: FakeHub, model: Path, cli: CommandLine) -> None:
    said = cli("push", model, "me/mine", "--revision", "v2")
    assert said.out == f"{hub.url}/me/mine/tree/v2 (private, 4 files)\n"
    assert hub.branches == ["v2"]
    assert hub.calls[-1] == "POST /api/models/me/mine/commit/v2"


@pytest.mark.parametrize(
    ("place", "status", "exit_status", "sentence"),
    [
        ("/repos/create", 401, 2, "does not accept the access token (401); run `hf auth login`, or set HF_TOKEN, with"),
        ("/repos/create", 403, 2, "does not let this token write to me/mine (403); give an OWNER of yours, or a"),
        ("/commit/", 403, 2, "does not let this token write to me/mine (403)"),
        ("/repos/create", 404, 2, "knows no me/mine that this token may write to (404); check OWNER"),
        ("/repos/create", 400, 2, "refuses the upload to me/mine (400: "),
        ("/repos/create", 500, 1, "failed while me/mine was uploaded (500: "),
    ],
)
def test_a_refusal_is_one_sentence(
    place: str, status: int, exit_status: int, sentence: str, hub: FakeHub, model: Path, cli: CommandLine
) -> None:
    hub.refuse[place] = status
    said = cli("push", model, "me/mine")
    assert said.status == exit_status, said.err
    assert said.last.startswith(f"sprachbund: {hub.url} {sentence}")
    assert "Traceback" not in said.err
    assert not hub.files


def test_no_server_is_one_sentence(hub: FakeHub, model: Path) -> None:
    with pytest.raises(SprachbundError, match=r"^http://127\.0\.0\.1:9 cannot be reached \(.+\); try again") as failed:
        push(model, "me/mine", endpoint="http://127.0.0.1:9")
    assert not isinstance(failed.value, InputError)


def test_offline_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set; unset it to push"):
        push(model, "me/mine")


def test_no_token_is_said_before_anything_is_asked(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no access token for the Hub was found; run `hf auth login`, or set HF_TOKEN"):
        push(model, "me/mine")
    assert hub.calls == []


@pytest.mark.parametrize(
    ("repo_id", "sentence"),
    [
        ("mine", "REPO_ID 'mine' names no owner; give OWNER/mine"),
        ("me/mi ne", "REPO_ID 'me/mi ne' is not valid"),
        ("a/b/c", "REPO_ID 'a/b/c' is not valid"),
    ],
)
def test_a_bad_repository_id_is_said_before_anything_is_asked(
    repo_id: str, sentence: str, hub: FakeHub, model: Path, cli: CommandLine
) -> None:
    said = cli("push", model, repo_id)
    assert said.status == 2
    assert said.last.startswith(f"sprachbund: {sentence}")
    assert hub.calls == []


def _empty(folder: Path) -> None:
    folder.mkdir()


def _pickled(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "pytorch_model.bin").write_bytes(b"x")


def _unfinished(folder: Path) -> None:
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: x\n")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: None, "is no folder"),
        (_empty, "holds no model"),
        (_pickled, "holds no model"),
        (_unfinished, "has no model yet; finish it with `sprachbund run"),
    ],
)
def test_a_folder_without_a_model_is_refused(make: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    make(tmp_path / "given")
    with pytest.raises(InputError, match=sentence):
        push(tmp_path / "given", "me/mine")


def test_a_run_is_its_model(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: x\n")
    model.rename(run / "model")
    assert model_folder(run) == run / "model"
    assert files_of(run / "model") == SENT[1:]
