"""A download that breaks off: one sentence, and the same again fetches only what is missing.

A server on this machine plays the Hub.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from sprachbund.errors import InputError, SprachbundError
from sprachbund.modeling.base import load_model
from sprachbund.modeling.checkpoint import fetch

COMMIT = "1" * 40
WEIGHTS = "model.safetensors"


@dataclass
class Hub:
    """A repository `org/tiny`, of which the weights break off after so many bytes; `asked` is what came from where."""

    folder: Path
    breaks_at: int | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Do what the Hub does on a call."""
        path = handler.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny"):
            names = [{"rfilename": file.name, "path": file.name, "type": "file", "size": file.stat().st_size,
                      "oid": "1" * 40} for file in sorted(self.folder.iterdir())]  # fmt: skip
            found: Any = names if "/tree/" in path else {"id": "org/tiny", "sha": COMMIT, "siblings": names}
            self.send(handler, 200, json.dumps(found).encode())
            return
        file = self.folder / path.rpartition("/")[2]
        if "/resolve/" not in path or not file.is_file():
            self.send(handler, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        start = int((re.findall(r"bytes=(\d+)-", handler.headers.get("range") or "") or [0])[0])
        headers = {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if handler.command == "GET":
            self.asked.append((file.name, start))
        end = self.breaks_at if handler.command == "GET" and file.name == WEIGHTS else None
        self.send(handler, 206 if start else 200, content[start:], headers, until=end and max(end - start, 0))

    def send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        until: int | None = None,
    ) -> None:
        """Send an answer, or its beginning."""
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content[:until])
        if until is not None:
            handler.wfile.flush()
            handler.connection.close()


@pytest.fixture
def hub(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server at HF_ENDPOINT with the base of the finished run, and a cache of its own."""
    fake = Hub(finished / "base")

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            fake.answer(self)

        do_GET = do_HEAD = _serve

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        url = f"http://127.0.0.1:{server.server_port}"
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what is lost of a broken download
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between its attempts
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield fake
        server.shutdown()


def arrived_files(cache: Path) -> set[str]:
    """Return the names of what a cache has of the repository."""
    return {path.name for path in cache.glob("models--org--tiny/snapshots/*/*")}


@pytest.mark.parametrize("get", [fetch, lambda name: load_model(name, dtype="float32")], ids=["fetch", "load"])
def test_a_download_that_breaks_off_is_one_sentence_and_the_same_again_fetches_what_is_missing(
    get: Callable[[str], Any], hub: Hub, tmp_path: Path
) -> None:
    hub.breaks_at = (hub.folder / WEIGHTS).stat().st_size // 2
    with pytest.raises(SprachbundError) as error:
        get("org/tiny")
    assert not isinstance(error.value, InputError)
    assert str(error.value).startswith("the download of 'org/tiny' broke off (peer closed connection")
    assert str(error.value).endswith("; give the same command again, which fetches what is missing")
    before = arrived_files(tmp_path / "hub")
    assert "config.json" in before
    assert WEIGHTS not in before
    hub.breaks_at, hub.asked = None, []
    get("org/tiny")
    asked = {name for name, _ in hub.asked}
    assert WEIGHTS in asked
    assert not asked & before
    (arrived,) = (tmp_path / "hub").glob(f"**/snapshots/*/{WEIGHTS}")
    assert arrived.read_bytes() == (hub.folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_a_base_of_which_a_part_was_copied_is_one_sentence(
    size: int, tiny: Path, finished: Path, cli: CommandLine
) -> None:
    base = tiny.parent / "base"
    base.mkdir()
    for file in (finished / "base").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / WEIGHTS).write_bytes((finished / "base" / WEIGHTS).read_bytes()[:size])
    run, out = tiny.parent / "run", tiny.parent / "out"
    said = cli("run", tiny, "--out", run, "--set", "base=base")
    assert said.status == 2
    assert said.last.startswith(f"sprachbund: {base / WEIGHTS} is truncated")
    said = cli("expand", base, "--layers", "0", "--groups", 2, "--out", out)
    assert said.status == 2
    assert said.last.startswith(f"sprachbund: {base / WEIGHTS} is truncated")
    assert not out.exists()
