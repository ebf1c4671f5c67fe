"""Downloads against a real HTTP server on this machine that can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ndavid.data.download import RESOURCES, fetch
from ndavid.errors import DataError

CONTENT = bytes((7 * i + i // 251) % 256 for i in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; `cuts` are the bytes after which the next answers break off."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.ranges = True
        self.cuts: list[int] = []
        self.errors: list[int] = []
        self.requests: list[str] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: Server = self.server  # type: ignore[assignment]
        asked = self.headers.get("Range", "")
        server.requests.append(asked)
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", asked)
        if match and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(match[1])
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
            end = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        if server.cuts:
            body = body[: server.cuts.pop(0)]
        server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def get(server: Server, target: Path, **arguments) -> Path:
    return fetch(server.url, target, progress=False, sleep=lambda seconds: None, **arguments)


def test_a_file_arrives_whole_and_leaves_no_parts(server, tmp_path: Path):
    path = get(server, tmp_path / "in" / "file.bin", size=len(CONTENT), sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_a_finished_file_is_not_fetched_again(server, tmp_path: Path):
    get(server, tmp_path / "file.bin", sha256=SHA256)
    get(server, tmp_path / "file.bin", sha256=SHA256)
    assert len(server.requests) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path: Path):
    server.cuts = [100_000, 50_000]
    path = get(server, tmp_path / "file.bin", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests == ["", "bytes=100000-", "bytes=150000-"]
    assert server.sent == len(CONTENT)


def test_a_later_run_goes_on_from_the_part(server, tmp_path: Path):
    server.cuts, server.errors = [120_000], []
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "file.bin", progress=False, sleep=_interrupt)
    assert (tmp_path / "file.bin.part").stat().st_size == 120_000
    assert not (tmp_path / "file.bin").exists()
    path = get(server, tmp_path / "file.bin", sha256=SHA256)
    assert path.read_bytes() == CONTENT and server.sent == len(CONTENT)


def _interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


def test_a_server_without_ranges_starts_over(server, tmp_path: Path):
    server.ranges, server.cuts = False, [100_000]
    assert get(server, tmp_path / "file.bin", sha256=SHA256).read_bytes() == CONTENT


def test_parts_of_two_versions_are_not_joined(server, tmp_path: Path):
    server.cuts = [100_000]
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "file.bin", progress=False, sleep=_interrupt)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT[::-1]


def test_server_errors_that_pass_are_waited_out(server, tmp_path: Path):
    server.errors = [503, 500, 429]
    waits: list[float] = []
    fetch(server.url, tmp_path / "file.bin", progress=False, sleep=waits.append)
    assert waits == [1.0, 2.0, 4.0]


def test_a_missing_file_is_not_asked_for_twice(server, tmp_path: Path):
    server.errors = [404]
    with pytest.raises(DataError, match=r"127\.0\.0\.1.*404"):
        get(server, tmp_path / "file.bin")
    assert len(server.requests) == 1


def test_no_progress_gives_up(server, tmp_path: Path):
    server.errors = [503] * 10
    with pytest.raises(DataError, match="gave up after 4 tries"):
        get(server, tmp_path / "file.bin", retries=3)
    assert len(server.requests) == 4


def test_an_unreachable_server_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match="refused"):
        fetch(
            "http://127.0.0.1:9/x", tmp_path / "x", retries=1, progress=False,
            sleep=lambda seconds: None,
        )  # fmt: skip


def test_another_size_than_expected_is_refused_before_the_download(server, tmp_path: Path):
    with pytest.raises(DataError, match="300000 bytes, expected 5"):
        get(server, tmp_path / "file.bin", size=5)
    assert list(tmp_path.iterdir()) == []


def test_another_content_than_expected_is_removed(server, tmp_path: Path):
    with pytest.raises(DataError, match="SHA-256"):
        get(server, tmp_path / "file.bin", sha256="0" * 64)
    assert not list(tmp_path.glob("file.bin")) and not list(tmp_path.glob("*.part"))


def test_a_certificate_is_only_skipped_where_the_digest_is_known(server, tmp_path: Path):
    with pytest.raises(ValueError, match="SHA-256"):
        get(server, tmp_path / "file.bin", insecure=True)
    assert get(server, tmp_path / "file.bin", insecure=True, sha256=SHA256).exists()


def test_every_official_resource_is_pinned():
    for resources in RESOURCES.values():
        for resource in resources:
            assert re.fullmatch("[0-9a-f]{64}", resource.sha256 or "")
            assert resource.url.startswith("https://") and resource.url.endswith(resource.name)


@pytest.mark.parametrize("broken", [[], [100_000]], ids=["whole", "resumed"])
def test_a_link_that_was_planted_is_not_written_through(server, tmp_path: Path, broken: list[int]):
    precious, target = tmp_path / "precious", tmp_path / "file.bin"
    if broken:
        # The tag of an earlier try, so that the link would be gone on with.
        server.cuts = [100_000]
        with pytest.raises(DataError):
            get(server, target, sha256=SHA256, retries=-1)
        (tmp_path / "file.bin.part").unlink()
    precious.write_bytes(b"precious")
    (tmp_path / "file.bin.part").symlink_to(precious)
    if broken:
        with pytest.raises(DataError, match=r"file\.bin\.part: cannot write it: it is a link"):
            get(server, target, sha256=SHA256)
    else:
        assert get(server, target, sha256=SHA256).read_bytes() == CONTENT
    assert precious.read_bytes() == b"precious"
