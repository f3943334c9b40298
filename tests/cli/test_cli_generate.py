"""jaxinfer generate writes what Model.generate gives, as text and as JSON."""

import dataclasses
import io
import re

import numpy as np
import pytest

from jaxinfer.cli import output, sampling
from jaxinfer.cli.flags import Flags
from jaxinfer.cli.generate import COMMAND
from jaxinfer.request import SamplingParams

PROMPT = "def run(capfd):"
SHORT = "--max_new_tokens=12"


def test_greedy_json_is_what_the_model_generates(run, folder, model):
    found = run(
        "generate",
        f"--model={folder}",
        "--raw",
        "--prompt",
        PROMPT,
        "--temperature=0",
        SHORT,
        "--json",
    ).json
    (expected,) = model.generate(PROMPT, temperature=0, max_new_tokens=12)
    assert found["prompt_token_ids"] == model.tokenizer.encode(PROMPT)
    assert found["token_ids"] == list(expected.token_ids)
    assert found["text"] == expected.text
    assert found["finish_reason"] == expected.finish_reason
    assert found["ttft_s"] > 0
    assert found["decode_tokens_per_s"] > 0
    assert "logprobs" not in found
    assert "completions" not in found


def test_text_is_that_of_the_json_and_the_speed_goes_to_stderr(run, folder):
    command = (
        "generate",
        f"--model={folder}",
        PROMPT,
        "--seed=5",
        "--temperature=0.8",
        "--max_new_tokens=40",
    )
    ran, found = run(*command), run(*command, "--json").json
    assert ran.out == found["text"] + "\n"
    assert re.search(r"first token after [\d.]+ s \(TTFT\); \d+ tokens, [\d.]+ tokens/s", ran.err)


def test_several_texts_come_in_order(run, folder):
    command = (
        "generate",
        f"--model={folder}",
        "--raw",
        "--prompt=a b",
        "--prompt=import",
        "--n=2",
        "--seed=1",
        "--temperature=1.5",
        "--max_new_tokens=20",
        "--ignore_eos",
    )
    found = run(*command, "--json").json
    texts = [completion["text"] for completion in found["completions"]]
    assert len(set(texts)) == 4
    assert {key: found[key] for key in found["completions"][0]} == {**found["completions"][0]}
    assert run(*command).out == "".join(text + "\n" for text in texts)
    assert run(*command, "--max_slots=1").out == "".join(text + "\n" for text in texts)


def test_a_stop_text_ends_and_is_left_out(run, folder, model):
    (whole,) = model.generate(PROMPT, temperature=0, max_new_tokens=30, ignore_eos=True)
    stop = whole.text[len(whole.text) // 2 :][:3]
    command = (
        "generate",
        f"--model={folder}",
        "--raw",
        PROMPT,
        "--temperature=0",
        "--max_new_tokens=30",
        "--ignore_eos",
    )
    ran = run(*command, "--stop=never occurs", "--stop", stop)
    assert ran.out == whole.text[: whole.text.index(stop)] + "\n"
    assert "finished by stop" in ran.err


def test_token_ids_need_no_tokenizer(run, folder, bare):
    command = ("--token_ids=5,6,7", "--temperature=0", "--ignore_eos", "--max_new_tokens=9")
    found = run("generate", f"--model={bare}", *command, "--json").json
    assert found["prompt_token_ids"] == [5, 6, 7]
    assert len(found["token_ids"]) == 9
    assert found["finish_reason"] == "length"
    assert (
        found["token_ids"]
        == run("generate", f"--model={folder}", *command, "--json").json["token_ids"]
    )
    ran = run("generate", f"--model={bare}", *command)
    assert ran.out.split() == [str(i) for i in found["token_ids"]]


def test_the_prompt_becomes_a_chat_where_there_is_a_template(run, folder, base, model):
    ids = {}
    for name, flags in (
        ("chat", []),
        ("raw", ["--raw"]),
        ("plain", ["--chat_template=plain"]),
        ("source", ["--chat_template=[{{ messages[0].content }}]"]),
    ):
        ids[name] = run("generate", f"--model={folder}", "hi", *flags, SHORT, "--json").json[
            "prompt_token_ids"
        ]
    encode = model.tokenizer.encode
    assert ids["chat"] == model.tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert ids["raw"] == encode("hi")
    assert ids["plain"] == encode("User: hi\n\nAssistant:")
    assert ids["source"] == encode("[hi]")
    assert (
        run("generate", f"--model={base}", "hi", SHORT, "--json").json["prompt_token_ids"]
        == ids["raw"]
    )


def test_a_template_may_lie_in_a_file(run, folder, model, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("<{{ messages[0].content }}>")
    found = run(
        "generate", f"--model={folder}", "hi", f"--chat_template={file}", SHORT, "--json"
    ).json
    assert found["prompt_token_ids"] == model.tokenizer.encode("<hi>")


def test_prompt_file_and_standard_input(run, folder, tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text("naïve\n", encoding="utf-8")
    expected = run("generate", f"--model={folder}", "--prompt=naïve\n", SHORT, "--json").json[
        "prompt_token_ids"
    ]
    command = ("generate", f"--model={folder}", SHORT, "--json")
    assert run(*command, f"--prompt_file={file}").json["prompt_token_ids"] == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert run(*command, "--prompt_file", "-").json["prompt_token_ids"] == expected


def test_logprobs_are_those_of_scoring(run, folder):
    found = run(
        "generate", f"--model={folder}", PROMPT, "--logprobs=3", "--seed=2", SHORT, "--json"
    ).json
    ids = found["prompt_token_ids"] + found["token_ids"]
    scored = run(
        "score", f"--model={folder}", f"--token_ids={','.join(map(str, ids))}", "--json"
    ).json
    assert scored["token_ids"] == ids
    np.testing.assert_allclose(
        found["logprobs"], scored["logprobs"][-len(found["token_ids"]) :], atol=1e-4
    )
    assert all(len(top) == 3 for top in found["top_logprobs"])


def test_a_stream_goes_on_beyond_the_context(run, folder):
    command = (
        "generate",
        f"--model={folder}",
        "--token_ids=4,5",
        "--max_new_tokens=300",
        "--ignore_eos",
        "--json",
    )
    refused = run(*command)
    assert refused.code == 1
    assert "256 positions" in refused.err
    assert len(run(*command, "--stream_window=32", "--sinks=2").json["token_ids"]) == 300


@pytest.mark.parametrize(
    "flags", [["--dtype=bfloat16"], ["--quantize=int8"], ["--mesh=data=1,model=1"]]
)
def test_the_ways_to_hold_a_model(run, folder, flags):
    found = run(
        "generate", f"--model={folder}", "--raw", PROMPT, *flags, "--ignore_eos", SHORT, "--json"
    ).json
    assert len(found["token_ids"]) == 12


def test_a_terminal_shows_the_prompt_faintly_and_no_control_characters(run, folder, monkeypatch):
    command = (
        "generate",
        f"--model={folder}",
        "--raw",
        PROMPT,
        "--temperature=0",
        "--max_new_tokens=30",
    )
    text = run(*command).out
    monkeypatch.setattr(output, "is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = run(*command).out
    assert out.startswith(f"\x1b[2m{PROMPT}\x1b[0m")
    shown = out.removeprefix(f"\x1b[2m{PROMPT}\x1b[0m")
    assert len(shown) == len(text)
    assert not [c for c in shown if ord(c) < 32 and c not in "\n\t"]


def test_a_model_cannot_steer_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(output, "is_terminal", lambda stream: True)
    output.write("a\x1b[2J\x07\x9bb\n\tc é")
    assert capsys.readouterr().out == "a\ufffd[2J\ufffd\ufffdb\n\tc é"


SETTINGS = {
    "max_new_tokens": 7,
    "temperature": 0.25,
    "top_k": 4,
    "top_p": 0.5,
    "min_p": 0.125,
    "typical_p": 0.75,
    "repetition_penalty": 1.5,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {3: -5.0, 4: 2.5},
    "min_tokens": 2,
    "bad_words": ("foo", "a,b"),
    "bad_word_ids": ((1, 2), (3,)),
    "seed": 9,
    "n": 3,
    "stop": ("\n\n", "x"),
    "stop_token_ids": (5, 6),
    "ignore_eos": True,
    "logprobs": 2,
    "logprobs_mode": "processed",
}


def test_every_sampling_parameter_has_a_flag_that_reaches_it():
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(SamplingParams)}
    argv = []
    for name, value in SETTINGS.items():
        if isinstance(value, dict):
            argv += [f"--{name}={token}:{bias}" for token, bias in value.items()]
        elif name == "stop_token_ids":
            argv.append(f"--{name}=5,6")
        elif isinstance(value, tuple):
            argv += [
                f"--{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for v in value
            ]
        else:
            argv.append(f"--{name}={value}")
    assert sampling.read(COMMAND.flags().parse(argv, ())) == SamplingParams(**SETTINGS)


def test_flags_left_out_mean_the_defaults():
    flags = Flags()
    sampling.define(flags)
    assert sampling.read(flags.parse([], ())) == SamplingParams(**sampling.DEFAULTS)
