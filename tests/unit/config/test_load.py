"""A configuration read: what goes before what, and what is said of one that is wrong."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.schemas import essence
from worker_adapters.config import ConfigError, Configuration, load, schema
from worker_adapters.config.lines import line_of
from worker_adapters.config.problems import dotted, parted

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).resolve().parents[3] / "docs"
EXAMPLE = re.search(r"```toml\n(.*?)```", (DOCS / "configuration.md").read_text("utf-8"), re.DOTALL)
KEY = "sk-proj-0123456789abcdefghijABCDEFGHIJ"

needs_the_extra = pytest.mark.skipif(
    find_spec("pydantic_settings") is None, reason="the extra [config] is not installed"
)

SMALL = """\
version = 1
[defaults]
engine = "llamacpp"
[pools.chat.replicas.a]
url = "http://127.0.0.1:8080"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        file = tmp_path / "adapters.toml"
        file.write_text(text, "utf-8")
        return file

    return written


def problems(file: Path | None, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file, **changes)
    told = str(caught.value)
    assert KEY not in told
    return told.replace(str(file), "FILE").splitlines()


def test_the_example(write: Callable[[str], Path]) -> None:
    assert EXAMPLE is not None
    found = load(write(EXAMPLE[1]))
    assert found.pools["chat"].policy is not None
    assert found.pools["chat"].policy.max_in_flight == 256
    assert found.policy.max_in_flight == 1024
    assert found.defaults.timeouts is not None
    assert found.defaults.timeouts.idle == "off"
    jsonschema.validate(tomllib.loads(EXAMPLE[1]), schema())
    # What is shown can be read again, and says the same.
    assert Configuration.model_validate(found.shown()) == found


def test_the_published_schema_is_this_one() -> None:
    published = json.loads((DOCS / "schemas" / "config-v1.json").read_text("utf-8"))
    assert essence(published) == essence(schema())
    jsonschema.Draft202012Validator.check_schema(published)


def test_without_a_file() -> None:
    found = load(version=1, pools={"chat": {"engine": "vllm"}})
    assert found.pools["chat"].engine == "vllm"


@needs_the_extra
def test_arguments_before_environment_before_file(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(SMALL + 'model = "of the file"\nmax_streams = 1\ntransport = "httpx"\n')
    monkeypatch.setenv("WORKER_ADAPTERS__POOLS__CHAT__REPLICAS__A__MODEL", "123")
    monkeypatch.setenv("WORKER_ADAPTERS__POOLS__CHAT__REPLICAS__A__MAX_STREAMS", "2")
    monkeypatch.setenv("WORKER_ADAPTERS__POOLS__CHAT__POLICY__PINNABLE", "false")
    monkeypatch.setenv("WORKER_ADAPTERS__FEATURES", '["stop", "tools"]')
    changes = {"chat": {"replicas": {"a": {"max_streams": 3}}}}
    replica = load(file, pools=changes).pools["chat"].replicas["a"]
    assert (replica.model, replica.max_streams, replica.transport) == ("123", 3, "httpx")
    found = load(file)
    assert found.pools["chat"].replicas["a"].max_streams == 2
    assert found.pools["chat"].policy is not None
    assert not found.pools["chat"].policy.pinnable
    assert found.features == ("stop", "tools")


@needs_the_extra
def test_everything_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_ADAPTERS__VERSION", "1")
    monkeypatch.setenv("WORKER_ADAPTERS__POOLS", '{"chat": {"engine": "tgi"}}')
    monkeypatch.setenv("WORKER_ADAPTERS__POOLS__CHAT__REPLICAS__A__URL", "http://h:1")
    monkeypatch.setenv("WORKER_ADAPTERS_URL", "http://of.the.command:1")
    found = load()
    assert found.pools["chat"].engine == "tgi"
    assert found.pools["chat"].replicas["a"].url == "http://h:1"


def test_where_a_problem_is(write: Callable[[str], Path]) -> None:
    file = write(
        f"""\
version = 1
sampler_profiles = [
  {{ name = "a", version = "a-1" }},
  {{ name = "b" }},
]

# pools
[pools.chat]
engine = "llamacpp"
api_key = "{KEY}"
text = \"\"\"
[pools.chat.replicas.zero]
url = 1
\"\"\"
  [pools.chat.replicas.a]
  url = "ftp://host"
  [pools.chat.replicas.b]

  model = "x"
  timeouts = {{ idle = "on" }}
[pools.chat.policy]
max_in_flight = "many"
"""
    )
    told = problems(file)
    assert [line.split(": ")[:2] for line in told] == [
        ["FILE:2", "sampler_profiles.1.version"],
        ["FILE:10", "pools.chat.api_key"],
        ["FILE:20", "pools.chat.policy.max_in_flight"],
        ["FILE:15", "pools.chat.replicas.a.url"],
        ["FILE:19", "pools.chat.replicas.b.timeouts.idle"],
        ["FILE:19", "pools.chat.replicas.b.timeouts.idle"],
        ["FILE:16", "pools.chat.replicas.b.url"],
        ["FILE:11", "pools.chat.text"],
    ] or [line.split(": ")[:2] for line in told]
    assert all(len(line) > 30 for line in told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 1\npools = [", "FILE: is no TOML: "),
        ("version = 1\n[pools\nx = 1", "FILE:2: is no TOML: "),
        ("version = 2", "FILE:1: version: Input should be 1"),
        ("mode = 'dev'", "version: is missing"),
        ('version = 1\nmode = "prod"', "FILE:2: mode: "),
        ("version = 1\n[logs.text]\nsample_rate = 1.0", "FILE:2: logs.text: is for development"),
        ("version = 1\n[logs.text]\nsample_rate = nan", "FILE:3: logs.text.sample_rate: "),
        (
            "version = 1\n[pools.chat.replicas.a]\nurl = 'http://h'",
            "FILE:2: pools.chat.replicas.a: no engine is named",
        ),
        ("version = 1\n[defaults]\nengine = 'mlx'", "FILE:3: defaults.engine: is no engine"),
        (
            "version = 1\n[defaults]\nsampler_profiles = ['x']",
            "FILE:3: defaults.sampler_profiles.0: is no version",
        ),
        (
            "version = 1\n[defaults.tls]\nreplace_roots = true",
            "FILE:2: defaults.tls: replace_roots without ca_file",
        ),
        (
            "version = 1\n[defaults.egress]\nallow = ['nonsense']",
            "FILE:2: defaults.egress: ",
        ),
        ("version = 1\n[metrics.label_budgets]\npools = 1", "FILE:3: metrics.label_budgets.pools"),
    ],
)
def test_what_is_wrong(write: Callable[[str], Path], text: str, said: str) -> None:
    told = problems(write(text))
    assert any(said in line for line in told), told


@needs_the_extra
def test_a_variable_is_named(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "WORKER_ADAPTERS__POLICY__MAX_IN_FLIGHT"
    monkeypatch.setenv(name, KEY)
    assert problems(write(SMALL)) == [
        f"{name}: policy.max_in_flight: Input should be a valid integer"
    ]


def test_an_argument_is_named(write: Callable[[str], Path]) -> None:
    (told,) = problems(write(SMALL), mode=KEY)
    assert told.startswith("argument: mode: ")


def test_without_the_extra_a_variable_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_ADAPTERS__MODE", "dev")
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    (told,) = problems(None, version=1)
    assert told.startswith("WORKER_ADAPTERS__MODE: variables need the extra: pip install")


def test_a_variable_of_no_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_ADAPTERS__POOLZ__CHAT__MODEL", "x")
    (told,) = problems(None, version=1)
    assert told.startswith("WORKER_ADAPTERS__POOLZ__CHAT__MODEL: poolz: there is no such field")


@needs_the_extra
def test_a_number_in_a_variable_s_json_is_no_name(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "WORKER_ADAPTERS__DEFAULTS"
    monkeypatch.setenv(name, '{"model": 3}')
    assert problems(write(SMALL)) == [f"{name}: defaults.model: Input should be a valid string"]


@needs_the_extra
def test_a_variable_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_ADAPTERS__FEATURES", "stop")
    (told,) = problems(None, version=1)
    assert told.startswith("WORKER_ADAPTERS__FEATURES: features: ")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("data", "said"), [(b"\xff\xfe", "not UTF-8"), (b"#" * (1 << 20) + b"\n", "larger than")]
)
def test_a_file_that_is_none(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "adapters.toml"
    file.write_bytes(data)
    (told,) = problems(file)
    assert said in told


def test_a_key_in_a_url_is_refused_and_not_repeated(write: Callable[[str], Path]) -> None:
    told = problems(write(SMALL.replace("127.0.0.1", f"user:{KEY}@127.0.0.1")))
    assert "credentials" in told[0]


def test_keys_are_shown_as_references(write: Callable[[str], Path]) -> None:
    shown = load(write(SMALL + 'api_key = "env:CHAT_KEY"\n')).shown()
    assert shown["pools"]["chat"]["replicas"]["a"]["api_key"] == "env:CHAT_KEY"
    odd = load(write(SMALL + f'model = "{KEY}"\n')).shown()
    assert KEY not in json.dumps(odd)


@pytest.mark.parametrize("name", ["api_key", "tls", "url", "hf_token", "client_key", "Password"])
def test_options_take_no_key(write: Callable[[str], Path], name: str) -> None:
    # Not a key that its shape gives away.
    file = write(f'{SMALL}[defaults.options]\n{name} = "hunter2-plain-secret"\n')
    (told,) = problems(file)
    assert told.startswith(f"FILE:7: defaults.options.{name}: ")
    assert "hunter2" not in told
    with pytest.raises(ValueError, match=name) as caught:
        Configuration.model_validate(tomllib.loads(file.read_text("utf-8")))
    assert "hunter2" not in str(caught.value)


def test_a_name_like_a_secret_s_hides_nothing_that_is_none(write: Callable[[str], Path]) -> None:
    told = SMALL.replace("chat", "api_key").replace("replicas.a", "replicas.client_key")
    shown = load(
        write(f'{told}model = "{KEY}"\n[defaults.tls]\nclient_cert = "/c"\nclient_key = "/k"')
    )
    assert KEY not in json.dumps(shown.shown())
    assert shown.shown()["defaults"]["tls"]["client_key"] == "/k"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[" * 5000, "FILE:3: is nested too deeply"),
        ("[\n" * 5000, "is nested too deeply"),
        ("{a = " * 5000, "FILE:3: is nested too deeply"),
        ("9" * 5000, "FILE:3: has a number of too many digits"),
        ("[\n1,\n" + "9" * 5000 + "\n]", "FILE:5: has a number of too many digits"),
        ("0x" + "f" * 5000, "FILE:3: x: "),
        (".".join("a" * 5000) + " = 1", "FILE:3: "),
    ],
)
def test_what_is_too_much_for_the_parser(
    write: Callable[[str], Path], value: str, said: str
) -> None:
    (told,) = problems(write(f"version = 1\n\nx = {value}\n[logs]\n"))
    assert said in told


def test_deep_keys(write: Callable[[str], Path]) -> None:
    deep = ".".join("a" * 1500)
    told = problems(write(f"version = 1\n[defaults.options]\n{deep} = 1\n"))
    assert all(line.startswith("FILE:3: defaults.options.a") for line in told)


@pytest.mark.parametrize("end", ["\u2028", "\u0085", "\u2029"])
def test_only_a_line_feed_ends_a_line(write: Callable[[str], Path], end: str) -> None:
    told = problems(write(f'version = 1 # {end}{end}\nmode = "dev{end}"\n# x\ntypo = 1\n'))
    assert {line.split(": ")[0] for line in told} == {"FILE:2", "FILE:4"}


@pytest.mark.parametrize("pool", ["a b", "a: b", "a.b", 'a"b', "\u00e4", "a\\\\b"])
def test_a_name_that_is_quoted(write: Callable[[str], Path], pool: str) -> None:
    name = json.dumps(pool)
    file = write(
        f"version = 1\n[pools.{name}]\nmodel = 'x'\n[pools.{name}.replicas.a]\nurl = 'http://h'"
    )
    (told,) = problems(file)
    assert told.startswith(f"FILE:4: pools.{name}.replicas.a: no engine is named")
    (told,) = problems(write(f"version = 1\n[pools.{name}]\nengine = 'mlx'\n"))
    assert told.startswith(f"FILE:3: pools.{name}.engine: is no engine")


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=4))
def test_a_field_is_written_as_toml_writes_it(field: list[str]) -> None:
    field.append("\x7f")
    text = dotted(tuple(field))
    assert parted(text) == tuple(field)
    assert text.isprintable()


@needs_the_extra
@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("POLICY", '{"max_in_flight": ' + "9" * 5000 + "}", "policy"),
        ("POLICY", '{"max_in_flight": ' * 50_000, "policy"),
        ("VERSION", "9" * 5000, "version"),
        ("FEATURES__0", "stop", "features"),
        ("DEFAULTS__MODEL__X", "dev", "defaults.model"),
        ("POLICY__MAX_IN_FLIGHT", "9" * 5000, "policy.max_in_flight"),
        ("POLICY__MAX_IN_FLIGHT", "[" * 50_000, "policy.max_in_flight"),
    ],
)
def test_a_variable_that_cannot_be(
    write: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    field: str,
) -> None:
    monkeypatch.setenv(f"WORKER_ADAPTERS__{name}", value)
    (told,) = problems(write("features = ['stop']\n" + SMALL))
    assert told.startswith(f"WORKER_ADAPTERS__{name}: {field}: ")
    assert len(told) < 300


keys = st.sampled_from(["a", "b", "c"])
values = st.recursive(
    st.one_of(
        st.integers(0, 9).map(str),
        st.sampled_from(['"x"', "'''\n[a]\nb = 1\n'''", '"""\na = 2\n"""', "true"]),
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda row: "[\n" + ",\n".join(row) + "]"),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(keys, min_size=1, max_size=3),
            st.booleans(),
            st.dictionaries(keys, values, max_size=3),
            st.sampled_from(["", "\n", "# [a.b]\n", "\n# c = 1\n\n"]),
        ),
        max_size=6,
    )
)
def test_a_line_is_where_its_statement_begins(
    tables: list[tuple[list[str], bool, dict[str, str], str]],
) -> None:
    lines: list[str] = []
    where: dict[tuple[str | int, ...], int] = {}
    counts: dict[str, int] = {}
    for path, is_list, fields, gap in tables:
        lines += gap.splitlines()
        field: tuple[str | int, ...]
        if is_list:
            name = "list-" + "-".join(path)
            field = (name, counts.get(name, 0))
            counts[name] = counts.get(name, 0) + 1
            lines.append(f"[[{name}]]")
        else:
            # Each table once: a second header would be no TOML.
            name = f"t{len(lines)}"
            field = (name, *path)
            lines.append(f"[{name}.{'.'.join(path)}]")
        where[field] = len(lines)
        for key, value in fields.items():
            where[(*field, key)] = len(lines) + 1
            lines += f"{key} = {value}".split("\n")
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    for field, line in where.items():
        assert line_of(text, field) == line
        # What is not there is looked for at what is nearest above it.
        assert line_of(text, (*field, "none")) == line
    assert line_of(text, ("none",)) is None
