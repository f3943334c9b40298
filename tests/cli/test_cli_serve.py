"""`jaxinfer serve` as a process: ready line, answers, a clean end; and every clear refusal."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import CONTEXT

ROOT = Path(__file__).parents[2]
KEY, ADMIN = "a-key-from-a-file", "a-key-from-outside"


@pytest.fixture
def start(folder, tmp_path):
    """start(*flags) -> a process; it is ended if the test leaves it running."""
    running = []

    def start(*flags):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        argv = ["serve", f"--model={folder}", "--port=0", "--warm_up=none", "--max_slots=2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxinfer", *argv, "--max_length=64", *flags],
            env={**environment, "JAXINFER_ADMIN_KEY": ADMIN},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def url(process) -> str:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return re.fullmatch(r".* is ready at (http://127\.0\.0\.1:\d+)/v1\n", line)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_from_start_to_end(start, folder, tmp_path, number):
    (tmp_path / "keys").write_text(f"{KEY}\nanother-key\n")
    process = start(f"--api_key_file={tmp_path / 'keys'}", "--max_queue=3", "--name=mine")
    base = url(process)
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
        assert client.get("/ready").status_code == 200
        assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert answer["usage"]["completion_tokens"] <= 4
        pages = re.search(r"^jaxinfer_pages ([\d.]+)$", client.get("/metrics").text, re.MULTILINE)
        assert float(pages[1]) > 0  # unless told otherwise, texts share them
        assert client.get("/v1/models", headers={"Authorization": "no"}).status_code == 401
        admin = {"Authorization": f"Bearer {ADMIN}"}
        assert client.post("/admin/abort", headers=admin).json() == {"aborted": 0}
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err


def test_a_second_signal_ends_it_at_once(start):
    process = start("--grace_s=600")
    base = url(process)
    body = {"prompt": "a", "max_tokens": 60, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=60) as response:
        httpx.post(f"{base}/admin/pause", headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        response.read()
    process.communicate(timeout=60)
    assert process.returncode == 0


def check_refusal(ran, words):
    assert ran.code == 1
    assert ran.out == ""
    assert words in ran.err
    assert re.fullmatch(r"jaxinfer: [^\n]+\n", ran.err)


def test_a_port_in_use(run, folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = run("serve", f"--model={folder}", f"--port={port}")
        check_refusal(ran, f"cannot listen at 127.0.0.1:{port}")
        assert "choose another --port" in ran.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host=no such host"], "--host and --port need an address"),
        (["--port=99999"], "--port needs to be 0 .. 65535"),
        (["--api_key=short"], "at least 8 printable"),
        (["--api_key=same-key-1", "--admin_key=same-key-1"], "differ"),
        (["--admin_key=one-key-1", "--admin_key_file={file}"], "one admin key"),
        (["--api_key_file=no/such/file"], "No such file"),
        (["--max_n=0"], "max_n needs"),
        (["--grace_s=-1"], "grace_s needs"),
        (["--max_slots=0"], "slots needs to be at least 1"),
        (["--page_size=-1"], "--page_size needs to be at least 0"),
        (["--num_pages=9", "--page_size=0"], "--num_pages needs pages"),
        (["--port=0", f"--max_length={CONTEXT + 1}"], f"2 .. {CONTEXT}"),
        (["--port=0", "--chat_template=zzz"], "needs a name among default, plain"),
    ],
)
def test_a_wrong_value_is_told_before_anything_is_served(run, folder, tmp_path, flags, words):
    (tmp_path / "file").write_text("another-key-2")
    flags = [flag.format(file=tmp_path / "file") for flag in flags]
    check_refusal(run("serve", f"--model={folder}", *flags), words)


def test_no_key_is_shown_in_a_refusal(run, folder):
    assert "pwd" not in run("serve", f"--model={folder}", "--api_key=pwd").err


def test_without_the_extra(run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "jaxinfer.cli.serve.importlib.util.find_spec",
        lambda name: None if name == "uvicorn" else found(name),
    )
    check_refusal(run("serve"), "serve needs uvicorn, which is not here: pip install")
