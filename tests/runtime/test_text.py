"""Text in and out of a bundle with a tokenizer, and chat templates that reach nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import mla_runtime
from mla_runtime import chat
from mla_runtime.errors import BackendError, BundleError, InputError
from tests.runtime.handmade import V, make_bundle

CHARACTERS = ["<eos>", "<bos>", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234", "Ġ", "Ċ"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}A{% endif %}"
)


def tokenizer_json() -> str:
    assert len(CHARACTERS) == V
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(CHARACTERS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    return str(tokenizer.to_str())


def text_bundle(folder: Path, template: str | None = TEMPLATE, **changes: Any) -> Path:
    files = {"tokenizer.json": tokenizer_json()} | ({} if template is None else {"chat.jinja": template})
    entry = {
        "tokenizer": "tokenizer.json",
        "chat_template": None if template is None else "chat.jinja",
        "tokens": {"bos_token": "<bos>", "eos_token": "<eos>"},
        "bos_id": 1,
        "add_bos": True,
        "stop_ids": [0],
    }
    return make_bundle(folder, files=files, text=entry | changes)


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundle(tmp_path_factory.mktemp("text") / "b")


def test_plain_text_begins_with_bos_once(worded: Path) -> None:
    text = mla_runtime.open(worded).text
    assert text is not None
    assert text.encode("ab c") == [1, 2, 3, 59, 4]
    assert text.encode("<bos>ab") == [1, 2, 3]
    assert text.decode([1, 2, 3, 59, 4, 0]) == "ab c"


def test_no_bos_where_the_model_wants_none(tmp_path: Path) -> None:
    text = mla_runtime.open(text_bundle(tmp_path / "b", add_bos=False)).text
    assert text is not None
    assert text.encode("ab") == [2, 3]


def test_the_chat_template_says_what_a_conversation_begins_with(worded: Path) -> None:
    text = mla_runtime.open(worded).text
    assert text is not None
    messages = [{"role": "user", "content": "ab"}, {"role": "x", "content": "c"}]
    assert text.render(messages) == "<bos>uab\nxc\nA"
    assert text.chat(messages)[:4] == [1, 22, 2, 3]


def test_streamed_text_is_that_of_all_ids(worded: Path) -> None:
    with mla_runtime.open(worded, threads=1) as model:
        assert model.text is not None
        stream = model.generate("abc", max_tokens=30, stop_ids=[])
        tokens = list(stream)
        assert "".join(token.text for token in tokens) == stream.text == model.text.decode(stream.ids)
        assert len(tokens) == 30
        (row,) = model.complete(["abc"], max_tokens=30, stop_ids=[])
        assert (row.text, list(row.ids)) == (stream.text, stream.ids)


def test_a_stop_string_across_tokens_ends_before_it(worded: Path) -> None:
    with mla_runtime.open(worded, threads=1) as model:
        whole = model.generate("abc", max_tokens=30, stop_ids=[])
        list(whole)
        stop = whole.text[4:7]
        assert len(stop) == 3
        stream = model.generate("abc", max_tokens=30, stop_ids=[], stop=[stop])
        shown = "".join(token.text for token in stream)
        assert stream.reason == "stop"
        assert shown == stream.text == whole.text[: whole.text.index(stop)]


def test_text_held_back_for_a_stop_string_is_shown_at_the_end(worded: Path) -> None:
    with mla_runtime.open(worded, threads=1) as model:
        whole = model.generate("abc", max_tokens=8, stop_ids=[])
        list(whole)
        stream = model.generate("abc", max_tokens=8, stop_ids=[], stop=[whole.text[-1] + "\0never"])
        assert "".join(token.text for token in stream) == whole.text
        assert stream.reason == "length"
        ended = model.generate("abc", max_tokens=8, stop_ids=whole.ids[-1:], stop=[whole.text[0] + "\0never"])
        assert "".join(token.text for token in ended) == ended.text
        assert ended.reason == "stop"


def render(tmp_path: Path, template: str) -> str:
    text = mla_runtime.open(text_bundle(tmp_path / "b", template)).text
    assert text is not None
    return text.render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ("{% for m in messages %}\n  {{ m.content }}{% break %}{% endfor %}", "  hi"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ '<é>' | tojson }}", '"<é>"'),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}{{ eos_token }}", "2<eos>"),
        ("{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true) }}", '{"a": "é", "b": 1}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% if tools is not none %}T{% endif %}{% if documents is not none %}D{% endif %}n", "n"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}", "21"),
        ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}", "user"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_templates_have_what_those_of_published_models_use(
    tmp_path: Path, template: str, result: str
) -> None:
    assert render(tmp_path, template) == result


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{% for i in range(1000000) %}x{% endfor %}",
        "{% include 'tokenizer.json' %}",
        "{{ missing.name }}",
        "{{ 1 / 0 }}",
        "{% if %}",
        "{{ 5 | dictsort }}",
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ 'a' * 10**13 }}",
        "{% generation %}",
        "{{ 'x' * 67108865 }}",
    ],
)
def test_templates_that_reach_out_or_fail_are_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(BundleError, match=r"chat.jinja: the chat template "):
        render(tmp_path, template)


def test_templates_give_what_transformers_gives(tmp_path: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{%- if tools is not none %}tools{% endif %}\n"
        "{{ messages | tojson(indent=1, separators=(',', ': ')) }}\n"
        "{% for m in messages %}\n  {%- generation %}\n  {{ m.content | tojson(ensure_ascii=True) }}\n"
        "  {% endgeneration %}\n{% endfor %}{{ documents }}"
    )
    messages = [{"role": "user", "content": "é<"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "chat.jinja"
    path.write_text(template)
    rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)
    assert chat.render(path, messages, {}) == rendered[0]


@pytest.mark.parametrize("name", ["messages", "self", "tools"])
def test_a_special_token_takes_no_other_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}{{ tools }}")
    assert chat.render(path, [{"content": "hi"}], {name: "<x>"}) == "hiNone"


def test_bytes_that_are_no_text_are_refused(worded: Path) -> None:
    with mla_runtime.open(worded) as model:
        with pytest.raises(InputError, match=r"the text has '\\udcff' at 1, which is no character"):
            model.generate("a\udcff")
        assert model.text is not None
        with pytest.raises(InputError, match="which is no character"):
            model.text.chat([{"role": "user", "content": "\ud800"}])


def test_a_template_may_refuse_messages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refuses these messages: roles must alternate"):
        render(tmp_path, "{{ raise_exception('roles must alternate') }}")


def test_a_template_too_large(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="larger than 1048576 bytes"):
        render(tmp_path, "x" * (2**20 + 1))


def test_no_template(tmp_path: Path) -> None:
    text = mla_runtime.open(text_bundle(tmp_path / "b", None)).text
    assert text is not None
    with pytest.raises(InputError, match="the bundle has no chat template; give a plain prompt"):
        text.chat([])


def test_a_tokenizer_that_does_not_load(tmp_path: Path) -> None:
    entry = {"tokenizer": "t.json", "chat_template": None, "tokens": {}, "bos_id": None}
    folder = make_bundle(
        tmp_path / "b", files={"t.json": "{}"}, text=entry | {"add_bos": False, "stop_ids": []}
    )
    with pytest.raises(BundleError, match=r"t.json: not a tokenizer that loads"):
        _ = mla_runtime.open(folder).text


@pytest.mark.parametrize("package", ["tokenizers", "jinja2"])
def test_missing_packages_say_what_to_install(
    worded: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (package, f"{package}.ext"):
        monkeypatch.setitem(sys.modules, name, None)
    model = mla_runtime.open(worded)
    with pytest.raises(BackendError, match=f"{package}; install the extra `text`"):
        _ = model.text.chat([])  # type: ignore[union-attr]


def test_ids_need_no_tokenizers(worded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mla_runtime.open(worded, threads=1) as model:
        stream = model.generate([5, 6], max_tokens=4, stop_ids=[])
        assert "".join(token.text for token in stream) == stream.text != ""
        assert stream.in_words
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with mla_runtime.open(worded, threads=1) as model:
        bare = model.generate([5, 6], max_tokens=4, stop_ids=[])
        assert [(token.id, token.text) for token in bare] == [(id_, "") for id_ in stream.ids]
        assert not bare.in_words
        assert model.complete([[5, 6]], max_tokens=4, stop_ids=[])[0].ids == tuple(stream.ids)
        for call in (lambda: model.generate("ab"), lambda: model.generate([5], stop=["a"])):
            with pytest.raises(BackendError, match="install the extra `text`, or give ids"):
                call()
