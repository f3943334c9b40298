"""The program around the commands: help, exit codes, one clear line for every mistake."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxinfer.cli import generate, main
from jaxinfer.version import __version__

ROOT = Path(__file__).parents[2]


def test_help_lists_every_command(run):
    for argv in (["--help"], ["-h"], ["help"]):
        ran = run(*argv)
        assert ran.code == 0
        assert all(
            name in ran.out and command.summary in ran.out
            for name, command in main.COMMANDS.items()
        )
    ran = run()
    assert ran.code == 2
    assert ran.out == ""
    assert "Usage" in ran.err


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_a_page_with_examples_and_all_its_flags(run, name):
    page = run("help", name).out
    assert page == run(name, "--help").out == run(name, "-h").out
    assert f"jaxinfer {name} " in page.split("Examples:")[1]
    for flag in main.COMMANDS[name].flags().values:
        if flag not in ("help", "h", "traceback"):
            assert re.search(rf"^  --{flag}\b", page, re.MULTILINE), flag
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_examples_on_the_pages_parse(name):
    command = main.COMMANDS[name]
    for example in command.examples:
        words = re.search(rf"jaxinfer {name}(.*?)(  #.*)?$", example).group(1)
        argv = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, text=True, check=True
        ).stdout
        command.flags().parse(argv.split("\0")[:-1] if words.strip() else [], command.positional)


def test_version(run):
    assert run("--version").out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generat", "--prompt=x"], "did you mean 'generate'?"),
        (["zzz"], "unknown command 'zzz'"),
        (["--prompt=x"], "flags come after a command"),
        (["generate", "--promt=x"], "unknown flag --promt; did you mean --prompt?"),
        (["generate", "--prompt"], "Missing value for flag --prompt"),
        (["generate", "one", "two"], "unexpected argument 'two'"),
        (["generate", "one", "--prompt=two"], "give one of them"),
        (["info", "--help", "--zzz"], "unknown flag --zzz"),
        (["help", "zzz"], "unknown command 'zzz'"),
    ],
)
def test_a_line_that_cannot_be_understood_is_2(run, argv, words):
    check_refusal(run(*argv), 2, words)


def check_refusal(ran, code, words):
    assert ran.code == code
    assert ran.out == ""
    assert words in ran.err
    assert re.fullmatch(r"jaxinfer: [^\n]+\n", ran.err)
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generate", "--prompt=x", "--top_k=many"], "--top_k=many: needs an integer"),
        (["generate", "--prompt=x", "--temperature=hot"], "needs a number"),
        (["generate", "--token_ids=1,b"], "needs token ids"),
        (["generate", "--prompt=x", "--logit_bias=3"], "like 42:-5"),
        (["generate", "--prompt=x", "--dtype=int3"], "--dtype=int3"),
        (["generate", "--prompt=x", "--temperature=-1"], "temperature: required"),
        (["generate", "--prompt=x", "--max_new_tokens=0"], "max_new_tokens: required"),
        (["generate", "--prompt=x", "--top_p=0"], "top_p: required"),
        (["generate"], "needs one of --prompt, --prompt_file and --token_ids, got none"),
        (["generate", "--prompt=x", "--token_ids=1"], "got --prompt and --token_ids"),
        (["generate", "--prompt=x", "--raw", "--chat_template=plain"], "exclude each other"),
        (["generate", "--prompt=x", "--sinks=2"], "--sinks needs --stream_window"),
        (["generate", "--prompt=x", "--stream_window=0"], "window >= 1"),
        (["generate", "--prompt_file=no/such/file"], "no/such/file: No such file or directory"),
        (
            ["generate", "--prompt=x", "--model=no/such/folder/at all"],
            "no folder 'no/such/folder/at all'",
        ),
        (["info", "no/such/folder/at all"], "no folder"),
        (["score"], "got none"),
        (["perplexity"], "needs --file"),
        (["perplexity", "no/such/file"], "No such file"),
        (["convert"], "needs --output"),
        (["convert", "--model=no/such folder", "--output=x"], "no folder"),
        (["chat", "--min_p=2"], "min_p: required"),
    ],
)
def test_a_wrong_value_is_1(run, argv, words):
    check_refusal(run(*argv), 1, words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--token_ids=1,331"], "0 .. 330"),
        (["--prompt="], "at least one token"),
        (["--prompt=x", "--max_new_tokens=5000"], "256 positions"),
        (["--prompt=x", "--chat_template=zzz"], "needs a name among default, plain"),
        (["--prompt=x", "--chat_template={% if %}"], "template"),
        (["--prompt=x", "--stop_token_ids=999"], "stop_token_ids"),
        (["--prompt=x", "--mesh=rows=2"], "mesh axes"),
        (["--prompt=x", "--mesh=model=512"], "needs 512 devices"),
        (["--prompt=x", "--max_slots=0"], "slots needs to be at least 1"),
    ],
)
def test_what_a_model_cannot_do_is_1(run, folder, flags, words):
    raw = [] if any("chat_template" in flag for flag in flags) else ["--raw"]
    check_refusal(run("generate", f"--model={folder}", *raw, *flags), 1, words)


def test_text_without_a_tokenizer_is_1(run, bare):
    check_refusal(run("generate", f"--model={bare}", "--prompt=x"), 1, "needs a tokenizer")
    check_refusal(
        run("generate", f"--model={bare}", "--token_ids=3", "--stop=x"),
        1,
        "stop strings need a tokenizer",
    )


def test_broken_files_are_1(run, folder, tmp_path):
    (tmp_path / "text").write_bytes(b"\xff\xfe\xff")
    check_refusal(
        run("score", f"--model={folder}", f"--prompt_file={tmp_path / 'text'}"), 1, "UTF-8"
    )
    (tmp_path / "text").write_bytes(b"")
    check_refusal(run("perplexity", tmp_path / "text", f"--model={folder}"), 1, "empty file")
    (tmp_path / "text").write_text("some words of text")
    for flags, words in (
        (["--window=1000"], "at most the model's 256"),
        (["--window=4", "--stride=4"], "stride < window"),
    ):
        check_refusal(run("perplexity", tmp_path / "text", f"--model={folder}", *flags), 1, words)
    (tmp_path / "config.json").write_text("{}")
    check_refusal(run("info", tmp_path), 1, "architectures")


def test_traceback_on_request(folder):
    with pytest.raises(ValueError, match="at least one token"):
        main.run(["generate", f"--model={folder}", "--raw", "--prompt=", "--traceback"])


def test_ctrl_c_is_130_and_quiet(run, folder, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate.model, "read", interrupted)
    ran = run("generate", "--prompt=x")
    assert (ran.code, ran.out, ran.err) == (130, "", "")


def start(argv, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxinfer", *argv],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_help_as_a_process():
    with start(["--help"], stdout=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "generate" in out
    assert err == ""


def test_a_reader_that_goes_away_is_no_drama(folder, tmp_path):
    argv = [
        "generate",
        f"--model={folder}",
        "--raw",
        "--prompt=x",
        f"--compile_cache={tmp_path}",
        "--max_new_tokens=100",
    ]
    with start([*argv, "--ignore_eos", "--json"], stdout=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=120)
    assert process.returncode == 141
    assert err == ""
    assert any(tmp_path.iterdir())  # the compile cache is where it was asked for
