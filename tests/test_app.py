"""The tab on a plain machine: its port, and folders that are empty or not there."""

from __future__ import annotations

import re
import socket

import pytest

pytest.importorskip("gradio", reason="every WebUI has it")

from lib_merge.errors import MergeError
from lib_merge.ui import app


@pytest.fixture
def served(monkeypatch):
    """Return what the server was given instead of being run."""
    given = {}

    class Server:
        def __init__(self, config):
            given["app"] = config.app

        def run(self, sockets):
            given["port"] = sockets[0].getsockname()[1]
            sockets[0].close()

    monkeypatch.setattr(app.uvicorn, "Server", Server)
    return given


def _taken():
    other = socket.socket()
    other.bind(("127.0.0.1", 0))
    other.listen()
    return other


def test_a_busy_port_gives_way_to_the_next_free_one_and_that_is_said(served, tmp_path, caplog):
    caplog.set_level("INFO")
    with _taken() as other:
        busy = other.getsockname()[1]
        assert app.main(["--lora-dir", str(tmp_path), "--port", str(busy), "--no-browser"]) == 0
    assert busy < served["port"] < busy + app.TRIES
    assert f"Port {busy} is taken by another program, so this is at {served['port']}." in caplog.text
    assert f"http://127.0.0.1:{served['port']}/" in caplog.text


def test_a_free_port_is_the_one_that_was_asked_for(served, tmp_path, caplog):
    caplog.set_level("INFO")
    with _taken() as other:
        free = other.getsockname()[1]
    assert app.main(["--lora-dir", str(tmp_path), "--port", str(free), "--no-browser"]) == 0
    assert served["port"] == free
    assert "is taken" not in caplog.text


def test_where_no_port_is_free_that_is_one_sentence(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(app, "TRIES", 1)
    with _taken() as other:
        busy = other.getsockname()[1]
        assert app.main(["--lora-dir", str(tmp_path), "--port", str(busy), "--no-browser"]) == 2
    assert f"no port from {busy} on is free: choose another with --port." in caplog.text
    with pytest.raises(MergeError, match="no port from 65536"):
        app.free_port(1 << 16)


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_loras_has_a_tab_and_one_that_is_missing_is_made(served, there, tmp_path, caplog):
    from fastapi.testclient import TestClient

    caplog.set_level("INFO")
    folder = tmp_path / "deep" / "loras"
    if there:
        folder.mkdir(parents=True)
    assert app.main(["--lora-dir", str(folder), "--port", "0", "--no-browser"]) == 0
    assert ("was not there and has been made" in caplog.text) is not there
    assert folder.is_dir()
    page = TestClient(served["app"], base_url="http://127.0.0.1").get("/")
    assert page.status_code == 200
    assert "LoRA Merge" in page.text


def test_what_is_no_folder_is_refused(served, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert app.main(["--lora-dir", str(tmp_path / "file"), "--no-browser"]) == 2
    assert app.main(["--lora-dir", str(tmp_path / "file" / "below"), "--no-browser"]) == 2
    assert "is no folder" in caplog.text
    assert "cannot be made" in caplog.text
    assert not served


def test_the_page_asks_no_other_server_for_anything(served, tmp_path):
    from fastapi.testclient import TestClient

    assert app.main(["--lora-dir", str(tmp_path), "--port", "0", "--no-browser"]) == 0
    page = TestClient(served["app"], base_url="http://127.0.0.1").get("/").text
    asked = re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//[^>]*>", page
    )
    assert asked == []
    assert len(re.findall(r"<script\b[^>]*\bsrc", page)) >= 2  # gradio's own and ours are there
