"""What the README tells a reader to type works."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jaxinfer.cli import serve
from tests.server.fakes import Engine, serving

SECTION = (
    (Path(__file__).parents[2] / "README.md").read_text().split("\n## Serve\n")[1].split("\n## ")[0]
)
URL = "http://127.0.0.1:8000"


def block(mark: str) -> str:
    return re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", SECTION, re.DOTALL)[1]


@pytest.fixture
def url(model):
    with serving(model, Engine(), max_length=128, api_keys=()) as (client, service):
        yield str(client.base_url).rstrip("/")


def test_the_command(capsys):
    (line,) = re.findall(r"jaxinfer serve (--.*)", SECTION)[:1]
    values = serve.COMMAND.flags().parse(shlex.split(line), serve.COMMAND.positional)
    assert f"http://{values.host}:{values.port}" == URL
    for flag in re.findall(r"`--(\w+)", SECTION):
        assert flag in values


def test_curl(url):
    command = block("curl").replace(URL, url)
    ran = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=True)
    assert b'"text_completion"' in ran.stdout


def test_the_official_client(url, capsys):
    exec(block("client").replace(URL, url), {})
    assert capsys.readouterr().out


def test_every_path_is_there(url):
    for path in re.findall(r"`(/[\w/.]+)`", SECTION):
        ran = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url + path],
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert ran.stdout in (b"200", b"405"), path  # 405: it takes POST
