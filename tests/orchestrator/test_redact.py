"""No credential is left, and nothing else is touched."""

import json
import logging
import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from orchestrator.job.errors import JobError
from orchestrator.job.kinds import KINDS
from orchestrator.job.load import load_job
from orchestrator.redact import (
    REDACTED,
    holds_credential,
    is_secret_name,
    redact_error,
    redact_fields,
    redact_text,
)
from orchestrator.run.folder import mark_first_step, open_run, run_url
from orchestrator.run.paths import PathError, absolute, resolve_url
from tests.paths import ROOT

DIGITS = ROOT / "jobs" / "pretrain_digits.yaml"

# Made up, and put together here so that no scanner of repositories takes them for real ones.
ENDS = {
    "AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "temporary AWS key": "ASIA" + "IOSFODNN7EXAMPLE",
    "Google OAuth": "ya29." + "a0AfH6SMBx-Example_token.0123456789",
    "Google API key": "AIza" + "SyA-1234567890_abcdefghijklmnopqrst",
    "GitHub": "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345",
    "GitHub, fine-grained": "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuv",
    "GitLab": "glpat-" + "abcdefghij0123456789",
    "Hugging Face": "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "Databricks": "dapi" + "0123456789abcdef0123456789abcdef",
    "JSON Web Token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "PEM": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabcd==\n-----END RSA PRIVATE KEY-----",
}

AMONG = [  # the text, and what must be gone from it
    ("https://user:hunter2@mlflow.example:5000/x", "hunter2"),
    ("postgresql://vit:hunt/er2@db:5432/mlflow", "er2"),
    ("mysql+pymysql://vit:p%40ss:w0rd@db/mlflow", "w0rd"),
    ("http://a-long-token-alone@mlflow", "a-long-token"),
    ("clone of https://x:hunter2@a and https://y:other3@b", "other3"),
    ("https://h/a.tar?sv=2022&sig=aGVsbG8%3D&se=1", "aGVsbG8"),
    ("https://h/a.tar?X-Amz-Credential=AK%2F2026&X-Amz-Signature=0a1b2c&x=1", "0a1b2c"),
    ("gs: https://h/a?X-Goog-Signature=deadbeef", "deadbeef"),
    ("https://h/a?GoogleAccessId=x%40y&Expires=1&Signature=c2lnbmVk", "c2lnbmVk"),
    ("Authorization: Bearer abc.def-123", "abc.def"),
    ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalr"),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalr"),
    ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey=aGVsbG8=;EndpointSuffix=x", "aGVsbG8"),
    ('{"private_key_id": "1", "password": "with spaces, and more"}', "more"),
    ("--set tracking.tags.api_key=hunter2: not YAML", "hunter2"),
    ("tracking.tags.dbPassword = hunter2: no", "hunter2"),
]


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("around", ["{}", "key {} refused", '{{"a": "{}"}}', "https://h/{}/x"])
def test_credentials_with_a_form_of_their_own(kind: str, around: str) -> None:
    assert redact_text(around.format(ENDS[kind])) == around.format(REDACTED)


@pytest.mark.parametrize(("text", "secret"), AMONG)
def test_credentials_among_other_text(text: str, secret: str) -> None:
    found = redact_text(text)
    assert secret not in found
    assert REDACTED in found
    assert redact_text(found) == found
    for host in ("mlflow", "db:5432", "EndpointSuffix=x", "se=1", "not YAML"):
        assert (host in found) == (host in text), "what is no secret stays"


def test_a_service_accounts_key_file_and_one_that_was_cut_short() -> None:
    pem = "-----BEGIN " + "PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----\n"
    account = json.dumps({"type": "service_account", "client_email": "a@b", "private_key": pem})
    assert "MIIE" not in redact_text(account)
    assert json.loads(redact_text(account))["client_email"] == "a@b"
    assert "MIIE" not in redact_text(f"log: {pem[:40]}")


# What job files, run folders and logs hold. Long words of any kind stand for digests, ids and names.
words = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=64)
hexes = st.sampled_from([32, 40, 64]).flatmap(lambda n: st.text("0123456789abcdef", min_size=n, max_size=n))
paths = st.lists(words, min_size=1, max_size=5).map("/".join)
hosts = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5})?(:[1-9][0-9]{0,3})?", fullmatch=True)
urls = st.builds(
    "{}://{}/{}".format, st.sampled_from(["s3", "gs", "http", "https", "file", "postgresql", "sqlite"]), hosts, paths
)
ordinary = st.one_of(words, hexes, paths, urls, st.floats().map(str), st.integers().map(str))


@given(st.lists(ordinary, min_size=1, max_size=4))
def test_ordinary_values_stay(values: list[str]) -> None:
    for text in (" ".join(values), ", ".join(values), json.dumps(values), yaml.safe_dump({"url": values})):
        assert redact_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "step 250/1,000 (25%), loss 2.1, 1,200 images/s",
        "s3://bucket/2026/run@home/step-000001200-5f3a90c1/manifest.json",
        "postgresql://vit@db:5432/mlflow",
        "http://127.0.0.1:5000/#/experiments/1/runs/0123456789abcdef0123456789abcdef?q=a@b",
        "pool=token, representation: token, tokens=197, cls_token=true, token == 3",
        "git@github.com:someone/something.git, mail to a.b@example.com",
        "user@host:~/runs, /home/a:b@c/x, $HOME/secret/runs",
        "sha256=" + "0" * 64,
        "metric eval/test/top1=0.97; learning_rate=0.001",
    ],
)
def test_what_only_looks_a_little_like_one_stays(text: str) -> None:
    assert redact_text(text) == text


pieces = [*"ab1/:@?&=;,\"' \n.-_$", "://", "https://u", "password", "sig=", "token=", *ENDS.values()]
noise = st.lists(st.sampled_from(pieces), max_size=30).map("".join)


@given(noise)
@example(f"https://u{ENDS['PEM']}@")
def test_twice_is_as_once(text: str) -> None:
    once = redact_text(text)
    assert redact_text(once) == once
    for secret in ENDS.values():
        assert f" {secret} " not in once
        glued = text.count(secret) - text.count(f" {secret} ")  # with other letters it is no such secret
        assert once.count(secret) <= glued


def test_a_long_line_takes_no_long_time() -> None:
    """Patterns that try every beginning against every end would need hours for this."""
    for filler in ("a", "a:", "://", "a=", "-----BEGIN RSA PRIVATE KEY", '"', "eyJ"):
        redact_text(filler * (400_000 // len(filler)))


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (name, True)
            for name in ("password", "PGPASSWORD", "dbPassword", "AWS_SECRET_ACCESS_KEY", "api-key", "hf_token")
        ),
        *(
            (name, True)
            for name in ("token", "MLFLOW_TRACKING_TOKEN", "client_secret", "credentials", "private_key_id")
        ),
        *((name, False) for name in ("tokens", "cls_token", "mask_token", "key", "run_key", "monkey", "PWD", "OLDPWD")),
        *((name, False) for name in ("tokenizer", "secretary", "key_bias", "password_policy", "author", "num_patches")),
    ],
)
def test_names(name: str, secret: bool) -> None:
    assert is_secret_name(name) == secret


def test_no_key_of_a_job_is_called_like_a_credential() -> None:
    def keys(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[str]:
        from orchestrator.job.keys import sections_of, typed

        if model in seen:
            return set()
        seen.add(model)
        found = set(model.model_fields)
        for field in model.model_fields.values():
            found |= {key for section in sections_of(typed(field)) for key in keys(section, seen)}
        return found

    for kind in KINDS.sections.values():
        names = keys(kind, set())
        assert "lr" in names or kind.__name__.startswith(("Sweep", "Evaluate"))
        assert not [name for name in names if is_secret_name(name)]


def test_fields_by_key_and_by_pattern() -> None:
    fields = {
        "tracking": {"uri": "http://u:hunter2@h", "tags": {"token": "abc", "pin_password": 1234, "note": "fine"}},
        "secret": {"url": "s3://b/x", "many": ["a", "https://u:p4@h"]},
        "passwords": None,
        "password": None,
        "sizes": [1, 2.5, True],
    }
    assert redact_fields(fields) == {
        "tracking": {
            "uri": f"http://u:{REDACTED}@h",
            "tags": {"token": REDACTED, "pin_password": REDACTED, "note": "fine"},
        },
        "secret": {"url": "s3://b/x", "many": ["a", f"https://u:{REDACTED}@h"]},
        "passwords": None,
        "password": None,
        "sizes": [1, 2.5, True],
    }
    assert redact_fields(redact_fields(fields)) == redact_fields(fields)


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_jobs_that_come_with_the_project_stay(job: Path) -> None:
    fields = load_job(job).model_dump(mode="json")
    assert redact_fields(fields) == fields
    assert redact_text(job.read_text()) == job.read_text()


# ------------------------------------------------------------------------------------------------------------ job files


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.uri", "http://me:hunter2@mlflow"),
        ("tracking.uri", "postgresql://me:hunter2$NUMBER@db/x"),
        ("tracking.tags.token", "hunter2"),
        ("tracking.tags.password", "123456789"),
        ("data.train.url", "https://h/x?sig=hunter2"),
        ("checkpoint.url", "s3://AKIA" + "IOSFODNN7EXAMPLE:hunter2@bucket/x"),
        ("tracking.tags.note", ENDS["GitHub"]),
        ("name", ENDS["Hugging Face"]),
    ],
)
def test_a_credential_in_a_job_is_refused_and_not_repeated(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(JobError) as refused:
        load_job(DIGITS, [f"{key}={value}"])
    raw = yaml.safe_load(DIGITS.read_text())
    section = raw
    *parents, last = key.split(".")
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = value
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(JobError) as in_a_file:
        load_job(tmp_path / "job.yaml")
    for error in (refused, in_a_file):
        text = str(error.value)
        assert f": {key}: " in text
        assert "$NAME" in text
        assert "\n" not in text
        assert "hunter2" not in text
        assert value not in text


def test_a_credential_is_refused_before_any_other_mistake_is_told() -> None:
    with pytest.raises(JobError) as refused:
        load_job(DIGITS, ["tracking.uris=http://me:hunter2@mlflow", "batch_size=x"])
    assert "hunter2" not in str(refused.value)
    with pytest.raises(JobError) as refused:
        load_job(DIGITS, ["tracking.tags.password={hunter2"])
    assert "hunter2" not in str(refused.value)


def test_in_lists_and_in_the_grid_of_a_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"kind: sweep\nbase: {DIGITS}\ngrid:\n  tracking.uri: ['http://a', 'http://u:hunter2@b']\n")
    with pytest.raises(JobError, match=r"grid\.tracking\.uri: ") as refused:
        load_job(sweep)
    assert "hunter2" not in str(refused.value)


def test_what_was_written_without_its_credential_does_not_run_by_mistake() -> None:
    with pytest.raises(JobError, match=r"tracking\.uri: a credential was removed"):
        load_job(DIGITS, [f"tracking.uri=http://me:{REDACTED}@mlflow"])


def test_variables_give_it_to_the_run_and_to_nothing_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKER_PASSWORD", "hunter$2x/y")
    monkeypatch.setenv("SIG", "c2lnbmVk")
    words = [
        f"checkpoint.url={tmp_path}",
        "tracking.uri=postgresql://me:${TRACKER_PASSWORD}@db/x",
        "data.train.url=https://h/train?sig=$SIG",
    ]
    job = absolute(load_job(DIGITS, words))
    assert job.tracking.uri == "postgresql://me:hunter$2x/y@db/x"
    assert job.data.train.url == "https://h/train?sig=c2lnbmVk"
    identity = open_run(job, "digest")
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "pretrain_digits" in written
    assert "hunter" not in written
    assert "c2lnbmVk" not in written
    assert open_run(job, "digest") == identity, "the recipe is the same"
    mark_first_step(run_url(job))
    with pytest.raises(JobError, match=r"seed = 1: the run in .* was started with 0"):
        open_run(absolute(load_job(DIGITS, [*words, "seed=1"])), "digest")


def test_a_secret_variable_where_it_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    monkeypatch.setenv("BUCKET", "mine")
    assert resolve_url("https://u:$MY_TOKEN@h/$BUCKET") == "https://u:hunter2@h/mine"
    for url in ("gs://$MY_TOKEN/x", "https://h/${MY_TOKEN}/x", "runs/$MY_TOKEN"):
        with pytest.raises(PathError, match="MY_TOKEN would be stored with the run") as refused:
            resolve_url(url)
        assert "hunter2" not in str(refused.value)


def test_a_field_that_only_names_its_variable_holds_no_credential() -> None:
    assert not holds_credential("password", "$PGPASSWORD")
    assert not holds_credential("uri", "https://${USER}:$PW@h?sig=$SIG")
    assert holds_credential("password", "x$PGPASSWORD")
    assert not holds_credential("note", "words")


# ----------------------------------------------------------------------------------------------------------------- logs


def test_logs_of_a_process() -> None:
    """All loggers and handlers, arguments and tracebacks."""
    program = """
import logging, sys
from orchestrator.redact import redact_logs
redact_logs(); redact_logs()
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
log = logging.getLogger("urllib3.connectionpool")
log.info("GET %s took %d ms", "https://u:hunter2@h/x", 12)
log.warning("100 % plain"); log.warning("%(a)s", {"a": "token=hunter2"})
try:
    raise OSError("cannot reach https://u:hunter2@h/y")
except OSError:
    log.exception("failed")
log.error("wrong %d", "format")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    assert f"GET https://u:{REDACTED}@h/x took 12 ms" in done.stdout
    assert "100 % plain" in done.stdout
    assert f"OSError: cannot reach https://u:{REDACTED}@h/y" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_errors_keep_their_kind_unless_they_tell() -> None:
    def raised(text: str) -> Exception:
        try:
            try:
                raise KeyError(text)
            except KeyError as inner:
                raise ValueError("outer") from inner
        except ValueError as error:
            return error

    harmless = raised("x")
    assert redact_error(harmless) is harmless
    told: Any = redact_error(raised("https://u:hunter2@h"))
    assert str(told) == "ValueError: outer"
    assert told.__cause__ is None


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Any:
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)
