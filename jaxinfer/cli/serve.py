"""jaxinfer serve: an OpenAI-compatible HTTP server. The server's libraries are an extra, and slow to
import: they are looked for when something is to be served.
"""

import dataclasses
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from absl.flags import FlagValues
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxinfer import shipped
from jaxinfer.cli import model, output, prompt
from jaxinfer.cli.flags import INTEGER, REAL, TEXT, Command, Flags
from jaxinfer.engine import TOP_N
from jaxinfer.generate import POOLINGS
from jaxinfer.model import Model
from jaxinfer.scheduler import Limits
from pallas_kernels.backend import platform

NEEDED = ("starlette", "uvicorn", "pydantic", "prometheus_client")
API_KEYS, ADMIN_KEY = "JAXINFER_API_KEYS", "JAXINFER_ADMIN_KEY"
PAGE_SIZES = {"cpu": 32}  # elsewhere 128, which kernels read whole
WARM_UP: dict[str, tuple[int | None, ...]] = {"none": (), "text": (None,), "all": (None, *TOP_N)}


def define(flags: Flags) -> None:
    flags.group("Address")
    flags.text("host", "the address to listen at; 0.0.0.0 is every network", "127.0.0.1", "ADDRESS")
    flags.one("port", INTEGER, "0 takes a free one", 8000)
    flags.text("name", "what requests call the model; without it, its folder or hub id")
    flags.many(
        "allowed_hosts",
        TEXT,
        "a name that requests may give as their Host; without it all, but only this machine's where "
        "neither a key nor another address is given",
        "NAME",
    )
    model.define(flags)
    prompt.define_template(flags)
    flags.group("Keys")
    flags.many(
        "api_key", TEXT, "a key that opens the API; other users may see a command line", "KEY"
    )
    flags.text("api_key_file", f"a file with a key a line; or set {API_KEYS}", form="FILE")
    flags.text(
        "admin_key", "the key of pause, resume and abort; without it they are closed", form="KEY"
    )
    flags.text("admin_key_file", f"a file that holds it; or set {ADMIN_KEY}", form="FILE")
    flags.group("Batch")
    flags.one("max_slots", INTEGER, "how many texts run at once", 32)
    flags.one(
        "max_length", INTEGER, "positions of one text; without it the model's, or 8192 if less"
    )
    flags.one("chunk", INTEGER, "prompt tokens of one text that a step reads at most", 512)
    flags.one("budget", INTEGER, "prompt tokens that a step reads at most", 2048)
    flags.one("decode_steps", INTEGER, "tokens decoded before the host looks again", 8)
    flags.one(
        "page_size",
        INTEGER,
        "positions of a page of the cache, which texts that begin the same share; without it 128, or "
        "32 on CPU; 0: every text has a place of its own",
    )
    flags.one(
        "num_pages",
        INTEGER,
        "how many pages; without it what memory_fraction allows, or enough for all texts at their "
        "longest where the device does not say (CPU)",
    )
    flags.one(
        "memory_fraction",
        REAL,
        "of a device's memory that the model and its pages take, where they are not counted",
        0.9,
    )
    flags.one(
        "swap_space",
        REAL,
        "of this machine's memory, for pages of texts that give way to others while pages are short; "
        "0: they are read again",
        4.0,
        "GIB",
    )
    flags.switch("unshared_prefixes", "prompts that begin the same each have pages of their own")
    flags.choice(
        "warm_up",
        "what is compiled before it is ready: nothing, what text needs, or log-probabilities too",
        tuple(WARM_UP),
        "text",
    )
    flags.choice("pooling", "how embeddings sum up a text", POOLINGS, POOLINGS[0])
    flags.group("Limits")
    flags.one("max_queue", INTEGER, "how many texts wait before callers are sent away (429)", 256)
    flags.one("max_body_bytes", INTEGER, "of a request", 4 * 2**20)
    flags.one("max_prompt_tokens", INTEGER, "of one prompt; without it what fits")
    flags.one("max_new_tokens", INTEGER, "of one answer; without it what fits")
    flags.one("max_prompts", INTEGER, "prompts x n of one request", 64)
    flags.one("max_n", INTEGER, "answers to one prompt", 16)
    flags.one("max_logprobs", INTEGER, "likeliest tokens that may be asked for", 20)
    flags.one("max_stops", INTEGER, "stop texts of one request", 16)
    flags.one("buffer", INTEGER, "tokens that wait for a slow reader before it is dropped", 4096)
    flags.one("request_s", REAL, "seconds that an answer may take", 600.0, "S")
    flags.one("read_s", REAL, "seconds that a request's body may take to arrive", 30.0, "S")
    flags.one("stall_s", REAL, "seconds that a step may take before /health fails", 120.0, "S")
    flags.one("grace_s", REAL, "seconds that a shutdown gives to answers under way", 30.0, "S")


def run(values: FlagValues) -> None:
    server = _room()
    keys = _keys(values)
    limits = Limits(
        slots=values.max_slots,
        max_length=1,
        chunk=values.chunk,
        budget=values.budget,
        decode_steps=values.decode_steps,
    )
    settings = server.Settings(name=values.name or _name(values.model), **keys, **_settings(values))
    settings = server.guarded(settings, values.host)
    page_size = _page_size(values.page_size, values.num_pages)
    with server.listen(values.host, values.port) as listening:
        loaded = model.read(values)
        limits = dataclasses.replace(limits, max_length=_length(values, loaded))
        settings = dataclasses.replace(settings, **_template(values, loaded))
        bar = Progress(
            TextColumn("compiling"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not output.is_terminal(sys.stderr),
        )
        task = bar.add_task("compiling", total=None)
        service = server.build(
            loaded,
            settings,
            limits,
            warm_up=WARM_UP[values.warm_up],
            page_size=page_size,
            num_pages=values.num_pages,
            memory_fraction=values.memory_fraction,
            swap_space=int(values.swap_space * 2**30),
            prefix_sharing=not values.unshared_prefixes,
            progress=lambda done, whole: bar.update(task, completed=done, total=whole),
        )

        def ready() -> None:
            bar.stop()
            output.write(f"{settings.name} is ready at {server.url(listening)}/v1\n")

        bar.start()
        try:
            server.serve(service, listening, ready)
        finally:
            bar.stop()
    output.note("stopped")


def _page_size(page_size: int | None, num_pages: int | None) -> int | None:
    """What the engine gets; ValueError where flags do not go together."""
    if page_size is not None and page_size < 0:
        raise ValueError(f"--page_size needs to be at least 0, got {page_size}")
    if num_pages is not None and num_pages < 1:
        raise ValueError(f"--num_pages needs to be at least 1, got {num_pages}")
    if num_pages is not None and page_size == 0:
        raise ValueError("--num_pages needs pages, got --page_size=0")
    if page_size is None:
        return PAGE_SIZES.get(platform(), 128)
    return page_size or None


def _room() -> ModuleType:
    """jaxinfer.server; ValueError where what it needs is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"serve needs {', '.join(missing)}, which is not here: pip install 'jaxinfer[serve]'"
        )
    return importlib.import_module("jaxinfer.server")


def _name(target: str | None) -> str:
    if target is None:
        return shipped.TARGET
    return Path(target).resolve().name if Path(target).exists() else target


def _settings(values: FlagValues) -> dict:
    names = (
        "pooling max_queue max_body_bytes max_prompt_tokens max_new_tokens max_prompts max_n "
        "max_logprobs max_stops buffer request_s read_s stall_s grace_s"
    )
    found = {name: values[name].value for name in names.split()}
    return {**found, "allowed_hosts": tuple(values.allowed_hosts)}


def _keys(values: FlagValues) -> dict:
    """API keys from flags, a file and the environment together; the admin key from one of them."""
    keys = [*values.api_key, *_lines(values.api_key_file)]
    keys += os.environ.get(API_KEYS, "").replace(",", " ").split()
    admin = [values.admin_key, *_lines(values.admin_key_file), os.environ.get(ADMIN_KEY)]
    admin = list(dict.fromkeys(key for key in admin if key))
    if len(admin) > 1:
        raise ValueError(
            f"needs one admin key, got {len(admin)} different ones; give it in one place"
        )
    return {"api_keys": tuple(dict.fromkeys(keys)), "admin_key": admin[0] if admin else None}


def _lines(name: str | None) -> list[str]:
    if name is None:
        return []
    keys = prompt.read_text(name).split()
    if not keys:
        raise ValueError(f"{name}: needs a key a line, got an empty file")
    return keys


def _length(values: FlagValues, loaded: Model) -> int:
    most = loaded.config.max_position
    if values.max_length is None:
        return min(most, 8192)
    if not 2 <= values.max_length <= most:
        raise ValueError(f"--max_length needs 2 .. {most} for this model, got {values.max_length}")
    return values.max_length


def _template(values: FlagValues, loaded: Model) -> dict:
    if values.chat_template is None or loaded.tokenizer is None:
        return {}
    stop = prompt.PLAIN_STOPS if values.chat_template == "plain" else ()
    return {"chat_template": prompt.template(values, loaded.tokenizer), "stop": stop}


COMMAND = Command(
    name="serve",
    summary="an OpenAI-compatible HTTP server",
    description="Serves one model to any number of callers at once: /v1/chat/completions, /v1/completions, "
    "/v1/responses and /v1/embeddings as the official clients call them, /tokenize, /detokenize, /metrics for "
    "Prometheus, /health and /ready for probes, /openapi.json for the rest. Only this machine can reach it unless "
    "--host says otherwise; then give it a key. Ctrl-C lets answers under way finish, a second one ends them. Needs "
    "pip install 'jaxinfer[serve]'.",
    examples=(
        "jaxinfer serve --chat_template=plain            # the model that ships with jaxinfer",
        "jaxinfer serve --model=Qwen/Qwen3-0.6B --quantize=int8",
        "jaxinfer serve --host=0.0.0.0 --port=80 --api_key_file=keys.txt --max_slots=128",
    ),
    define=define,
    run=run,
    positional=("model",),
)
