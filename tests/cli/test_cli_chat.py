"""jaxinfer chat: a scripted conversation."""

import io
import json
import signal

import pytest

from jaxinfer import engine
from jaxinfer.cli import chat, output


@pytest.fixture
def say(run, monkeypatch):
    """say(lines, flags...) -> what a conversation with these lines on standard input left behind."""

    def say(lines, *flags):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return run("chat", *flags, "--temperature=0", "--max_new_tokens=8")

    return say


def test_a_conversation_is_that_of_the_library(say, folder, model, tmp_path):
    file = tmp_path / "talk.json"
    ran = say(
        ["hello", "", "and again", f"/save {file}", "/exit", "not read"],
        f"--model={folder}",
        "--system=be brief",
    )
    messages, texts = [{"role": "system", "content": "be brief"}], []
    for words in ("hello", "and again"):
        messages.append({"role": "user", "content": words})
        texts.append(model.chat(messages, temperature=0, max_new_tokens=8).text)
        messages.append({"role": "assistant", "content": texts[-1]})
    assert ran.code == 0
    assert ran.out == "".join(text + "\n" for text in texts)
    assert json.loads(file.read_text()) == messages
    assert ran.err.count("(TTFT)") == 2


def test_a_turn_reads_only_what_is_new(say, folder, monkeypatch):
    sequences, add = [], engine.Engine.add

    def record(self, request, **options):
        sequences.append(add(self, request, **options))
        return sequences[-1]

    monkeypatch.setattr(engine.Engine, "add", record)
    say(["a first message of some length", "more"], f"--model={folder}")
    first, second = sequences
    assert first.reused == 0
    assert second.reused >= len(first.request.prompt_token_ids)


def test_commands(say, folder, tmp_path):
    file = tmp_path / "talk.json"
    lines = [
        "one",
        "/system be kind",
        "/help",
        "/foo",
        "/save",
        f"/save {tmp_path}",
        '"""',
        "two",
        "three",
        '"""',
    ]
    ran = say([*lines, f"/save {file}", "/reset", f"/save {file}.new"], f"--model={folder}")
    assert ran.code == 0
    messages = json.loads(file.read_text())
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "two\nthree"
    assert json.loads((tmp_path / "talk.json.new").read_text()) == [
        {"role": "system", "content": "be kind"}
    ]
    for words in (
        "/reset  ",
        "unknown command '/foo'",
        "/save needs a file name",
        f"cannot write {tmp_path}",
    ):
        assert words in ran.err


def test_a_full_context_is_said_and_forgotten(say, folder, tmp_path):
    file = tmp_path / "talk.json"
    ran = say(["x " * 300, "hello", f"/save {file}"], f"--model={folder}")
    assert ran.code == 0
    assert "256 positions" in ran.err
    assert next(m["content"] for m in json.loads(file.read_text())) == "hello"


def test_ctrl_c_stops_an_answer_and_not_the_chat(run, folder, monkeypatch):
    write, written = output.write, []

    def interrupt_once(text):
        write(text)
        written.append(text)
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(output, "write", interrupt_once)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nagain\n"))
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    ran = run("chat", f"--model={folder}", "--temperature=0", "--max_new_tokens=60", "--ignore_eos")
    assert ran.code == 0
    assert ran.err.count("stopped") == 1
    assert ran.err.count("60 tokens") == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_the_prompt_leaves(run, folder, monkeypatch):
    def interrupted(ask):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_line", interrupted)
    ran = run("chat", f"--model={folder}")
    assert ran.code == 130
    assert ran.out == ran.err == ""


def test_a_base_model_chats_in_plain_words_on_request(say, base, model):
    refused = say(["hello"], f"--model={base}")
    assert refused.code == 1
    assert "--chat_template=plain" in refused.err
    ran = say(["hello"], f"--model={base}", "--chat_template=plain")
    prompt = model.tokenizer.encode("User: hello\n\nAssistant:")
    (expected,) = model.generate([prompt], temperature=0, max_new_tokens=8, stop=("\n\nUser:",))
    assert ran.out == expected.text + "\n"


def test_no_tokenizer(say, bare):
    ran = say(["hello"], f"--model={bare}")
    assert ran.code == 1
    assert "tokenizer" in ran.err
