"""Removes credentials from everything that is stored or printed: job files, logs, messages, MLflow.

Two rules find them: the name of a value (`password`, `hf_token`, `AWS_SECRET_ACCESS_KEY`), and its form. The patterns
match the forms that issuers document and nothing that is only random, so digests, run names and object keys stay as
they are. Applying a function here to its own result changes nothing.
"""

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any

REDACTED = "REDACTED"
"""Replaces a credential."""

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
"""`$NAME` or `${NAME}`, as `paths.resolve_url` expands them."""

_SECRET_NAME = re.compile(
    r"(?:passw(?:or)?d|passphrase|passcode|_pwd|secrets?|token|credentials?|authorization"
    r"|(?:api|access|account|private|secret|auth|signing|encryption|shared)_?key)(?:_?id)?$"
)
_TOKEN_OF_A_MODEL = re.compile(r"(?:cls|class|mask|dist|distill|distillation|pad|patch|register)_token$")

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # PEM (RFC 7468), also inside the JSON of a Google service account, and with its end cut off. It comes first,
        # since the other rules do not look beyond its spaces.
        (
            r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$(?![\s\S]))",
            REDACTED,
        ),
        # The part of a URL before "@" (RFC 3986, 3.2.1). SQLAlchemy also takes passwords with a slash in them, and
        # services take a token for the user name over HTTP.
        (r"""(?<=://)([^\s/?#@:"'<>]*):[^\s/?#"'<>]*@""", rf"\1:{REDACTED}@"),
        (r"""(?<=://)([^\s/?#@:"'<>]+):(?!\d{1,5}(?:[/?#,]|$))[^\s"'<>]{0,256}@""", rf"\1:{REDACTED}@"),
        (r"""(?:(?<=http://)|(?<=https://))[^\s/?#@:"'<>]+@""", f"{REDACTED}@"),
        # What signs a URL: Azure's SAS; AWS's and Google's signature versions 2 and 4.
        (
            r"""(?i)(?<=[?&])((?:sig|signature|AWSAccessKeyId|GoogleAccessId"""
            r"""|x-(?:amz|goog)-(?:signature|credential|security-token)))=[^\s&#"'<>]+""",
            rf"\1={REDACTED}",
        ),
        # HTTP headers (RFC 6750, RFC 7617).
        (r"""(?i)\b(authorization["']?\s*[:=]\s*["']?(?:bearer|basic|token)\s+)[^\s"',]+""", rf"\1{REDACTED}"),
        (r"(?i)\b(bearer\s+)[\w.~+/-]{16,}=*", rf"\1{REDACTED}"),
        # Identifiers with prefixes of their own, from their issuers' documentation.
        (r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b", REDACTED),  # AWS access key ids
        (r"\bya29\.[\w.-]{20,}", REDACTED),  # Google OAuth access tokens
        (r"\bAIza[\w-]{35}(?![\w-])", REDACTED),  # Google API keys
        (r"\bGOCSPX-[\w-]{28}(?![\w-])", REDACTED),  # Google OAuth client secrets
        (r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,})", REDACTED),  # GitHub, GitLab
        (r"\bhf_[A-Za-z0-9]{30,}\b", REDACTED),  # Hugging Face
        (r"\bdapi[0-9a-f]{32}\b", REDACTED),  # Databricks
        (r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*", REDACTED),  # JSON Web Tokens (RFC 7519)
    )
)

# NAME=VALUE, NAME = VALUE and "NAME": "VALUE". The name decides.
_ASSIGNMENT = re.compile(
    r"""(?<![\w.-])([\w.-]++)(\s*=(?!=)\s*|["']\s*:\s*(?=["']))("[^"\n]*"|'[^'\n]*'|(?:(?!:(?:\s|$))[^\s&,;"'])++)"""
)


def is_secret_name(name: str) -> bool:
    """Whether `name`, the key of a field or an environment variable, names a credential."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower()
    return bool(_SECRET_NAME.search(words)) and not _TOKEN_OF_A_MODEL.search(words)


def redact_text(text: str) -> str:
    """The text with `REDACTED` instead of each credential."""
    while (redacted := _redact_once(text)) != text:  # a replaced credential may have hidden another one
        text = redacted
    return text


def _redact_once(text: str) -> str:
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return _ASSIGNMENT.sub(
        lambda found: found[1] + found[2] + _hidden(found[3]) if is_secret_name(found[1]) else found[0], text
    )


def redact_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings and lists, such as a job, without credentials: by key, and by pattern in every text.

    Every string or number under a secret-looking key is replaced; sections stay, even under such a key.
    """
    return {key: _redacted(value, is_secret_name(key)) for key, value in fields.items()}


def holds_credential(name: str, text: str) -> bool:
    """Whether the field `name` with the value `text` holds a credential itself, not only the `$NAME` of one."""
    open_text = VARIABLE.sub(REDACTED, text)
    return open_text != (REDACTED if is_secret_name(name) else redact_text(open_text))


def print_error(text: str) -> None:
    """Print an error on stderr, in one line. It may quote a URL or the answer of a server."""
    print(redact_text(f"error: {text}"), file=sys.stderr)


def print_warning(text: str) -> None:
    """Print a warning on stderr, in one line."""
    print(redact_text(f"warning: {text}"), file=sys.stderr)


def redact_logs() -> None:
    """From now on, remove the credentials from every log record of this process, including libraries'."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            record.msg, record.args = redact_text(record.getMessage()), ()
        except (TypeError, ValueError):
            return record  # malformed log call: leave it to the handler
        if record.exc_info and record.exc_info[0] is not None:  # handlers print this text instead of making their own
            record.exc_text = redact_text("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)


def redact_error(error: Exception) -> Exception:
    """The error itself; if its traceback holds a credential, a redacted copy without its causes."""
    message = "".join(traceback.format_exception(error))
    return error if redact_text(message) == message else RuntimeError(redact_text(f"{type(error).__name__}: {error}"))


def _redacted(value: Any, is_secret: bool) -> Any:
    if isinstance(value, Mapping):
        return redact_fields(value)
    if isinstance(value, list | tuple):
        return [_redacted(each, is_secret) for each in value]
    if is_secret and isinstance(value, str | int | float) and not isinstance(value, bool):
        return REDACTED
    return redact_text(value) if isinstance(value, str) else value


def _hidden(value: str) -> str:
    quote = value[0] if value[0] in "\"'" else ""
    return f"{quote}{REDACTED}{quote}"
