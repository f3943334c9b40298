"""The page at /: what is served, under which policy, and that it holds together: every file, id,
field and figure that it names is there. How it looks and behaves was seen in a browser by hand.
"""

import asyncio
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from jaxinfer.server import playground
from jaxinfer.server.metrics import Metrics
from jaxinfer.server.schemas import ChatRequest, CompletionRequest, StreamOptions

ROOT = Path(__file__).parents[2]
HERE = ROOT / "jaxinfer/server/playground"
FILES = sorted(path for path in HERE.iterdir() if path.suffix[1:] in playground.TYPES)
SCRIPTS = {path.name: path.read_text() for path in FILES if path.suffix == ".js"}


class Page(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(scope="module")
def page() -> Page:
    return Page((HERE / "index.html").read_text())


def get(path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        app = httpx.ASGITransport(Starlette(routes=playground.routes()))
        async with httpx.AsyncClient(transport=app, base_url="http://here") as client:
            return await client.get(path)

    return asyncio.run(ask())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_is_served_as_it_is_under_a_strict_policy(file):
    answer = get("/" if file.name == "index.html" else f"/playground/{file.name}")
    assert answer.status_code == 200
    assert answer.content == file.read_bytes()
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    assert answer.headers["content-type"].startswith(kinds.get(file.suffix, "image/svg+xml"))
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_else_is_served():
    assert get("/playground/__init__.py").status_code == 404
    assert get("/playground/../metrics.py").status_code == 404
    assert get("/playground/").status_code == 404


def test_the_server_shows_it_without_a_key(served):
    answer = served.get("/", key=None)
    assert answer.content == (HERE / "index.html").read_bytes()
    assert answer.headers["content-security-policy"] == playground.POLICY
    assert served.get("/playground/app.js", key=None).status_code == 200
    assert served.get("/metrics", key=None).status_code == 401


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_names_another_host(file):
    text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(https?|wss?)://|['\"(]//|@import|url\(", text)


def test_the_policy_has_nothing_to_refuse(page):
    """No code or style in the page itself, and none that is made from text."""
    assert page.inline == ""
    for _, attributes in page.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    code = "".join(SCRIPTS.values())
    assert not re.search(
        r"\beval\b|new Function|innerHTML|insertAdjacentHTML|document\.write", code
    )


def test_all_that_it_names_is_there(page):
    names = {path.name for path in FILES} - {"index.html"}
    linked = {a.get("href") or a.get("src") for tag, a in page.elements} - {None, "#prompt"}
    assert {link.removeprefix("playground/") for link in linked} <= names
    imported = {name for text in SCRIPTS.values() for name in re.findall(r'from "\./(.+)"', text)}
    assert imported | {"app.js"} == set(SCRIPTS)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    asked = set()
    for text in SCRIPTS.values():
        asked |= set(re.findall(r'(?:\bat|getElementById|fresh|\btext)\("([\w-]+)"', text))
    assert {"prompt", "pane", "charts", "running"} <= asked <= set(ids)
    exported = {name for text in SCRIPTS.values() for name in re.findall(r"export \w+ (\w+)", text)}
    for text in SCRIPTS.values():
        for wanted in re.findall(r"import \{ (.+) \}", text):
            assert set(wanted.split(", ")) <= exported


def test_every_control_has_a_name(page):
    labels = {a.get("for") for tag, a in page.elements if tag == "label"}
    for tag, attributes in page.elements:
        if tag in ("input", "select", "textarea") and "data-name" not in attributes:
            assert attributes.get("id") in labels or attributes.get("aria-hidden") == "true"
    fields = [i for i, (_, a) in enumerate(page.elements) if "field" in (a.get("class") or "")]
    assert fields
    assert all(page.elements[i + 1][0] == "label" for i in fields)


def test_what_it_sends_is_what_the_server_takes(page):
    sent = {a["data-name"] for _, a in page.elements if "data-name" in a} - {"mode", "system"}
    assert sent == {"temperature", "top_p", "top_k", "max_tokens", "seed"}
    assert sent <= set(ChatRequest.model_fields)
    assert sent <= set(CompletionRequest.model_fields)
    options = re.search(r"counts = \{(.+)\}", SCRIPTS["wire.js"])
    assert options
    assert set(re.findall(r"(\w+):", options[1])) <= set(StreamOptions.model_fields)


def test_the_figures_it_reads_are_the_servers(served):
    """All but the share of the bandwidth limit, whose plot appears where a server has it."""
    read = set(re.findall(r"jaxinfer_\w+", SCRIPTS["wire.js"])) - {"jaxinfer_mbu"}
    shown = set(re.findall(r"^(jaxinfer_\w+)", served.get("/metrics").text, re.MULTILINE))
    first = "jaxinfer_time_to_first_token_seconds"
    assert {first, "jaxinfer_generated_tokens_total", "jaxinfer_pages_used"} <= read
    assert read - {first} <= shown
    assert {f"{first}_sum", f"{first}_count"} <= shown
    assert b"jaxinfer_generated_tokens_total" in Metrics().render()


def test_the_package_holds_every_file():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = data["tool"]["setuptools"]["package-data"]["jaxinfer.server.playground"]
    assert all(any(path.match(pattern) for pattern in patterns) for path in FILES)
