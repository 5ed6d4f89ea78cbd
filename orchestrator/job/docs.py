"""The schema for editors and for people: `jobs/schema.json` and `docs/job-keys.md`.

`python -m orchestrator schema --write`, from the project's root, writes both.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orchestrator.job.keys import Key, keys_of
from orchestrator.job.kinds import JOB, KINDS
from orchestrator.job.values import Duration, Section
from orchestrator.wording import one_line

SCHEMA_FILE = Path("jobs/schema.json")
KEYS_FILE = Path("docs/job-keys.md")
HEAD = """\
# Keys of a job file

Generated from the classes in `orchestrator/job/` by `python -m orchestrator schema --write`.

A job file is YAML; `--set a.b=c` changes a key for one run, with a YAML value: `--set data.eval=null`,
`--set cluster.resources_per_worker.GPU=0`.

- A *duration* has one unit: `{steps: 10000}`, `{epochs: 14}` (fractions are fine) or `{images: 50000000}`. Setting
  another unit replaces it.
- `NAME` stands for a name of your own.
- `~` and `$NAME` are expanded in paths and URLs. Relative local paths begin at `$VIT_HOME` if that is set, else at
  the current directory; in a job submitted with `ray job submit --working-dir`, whose directory Ray deletes
  afterwards, at `~/vit`.

| kind | does |
|---|---|
"""
TABLE = "\n| key | value | default | kinds | |\n|---|---|---|---|---|\n"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job file, from which editors complete and check (draft 2020-12)."""
    schema = JOB.json_schema()
    for kind in KINDS.sections.values():
        schema["$defs"][kind.__name__]["required"].remove("name")  # `load_job` takes it from the file's name
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Job"} | schema


def keys_page() -> str:
    """Every key with its type, default, kinds and meaning, as Markdown."""
    kinds_of: dict[Row, list[str]] = {}  # a key that differs by kind has several rows
    for name, kind in KINDS.sections.items():
        for key in keys_of(kind):
            if not any(key.field is unit for unit in Duration.model_fields.values()):  # explained above the tables
                kinds_of.setdefault(_row(key), []).append(name)

    page = HEAD + "".join(f"| `{name}` | {one_line(kind.__doc__)} |\n" for name, kind in KINDS.sections.items())
    in_sections = dict.fromkeys(row.section for row in kinds_of if "." in row.path)
    page += "\n## Of the whole job\n" + TABLE
    page += "".join(_line(row, kinds) for row, kinds in kinds_of.items() if row.section not in ("kind", *in_sections))
    for section in in_sections:
        rows = {row: kinds for row, kinds in kinds_of.items() if row.section == section}
        heads = {row: kinds for row, kinds in rows.items() if row.path == section}
        about = [f"{row.meaning[:-1]} ({_kinds(kinds)})." for row, kinds in heads.items()]
        page += f"\n## {section}\n\n" + "  \n".join(about) + "\n" + TABLE
        page += "".join(_line(row, kinds) for row, kinds in rows.items() if row not in heads)
    return page


class Row(NamedTuple):
    path: str
    value: str
    default: str
    meaning: str

    @property
    def section(self) -> str:
        return self.path.split(".")[0]


def _row(key: Key) -> Row:
    value = re.sub(r"section with .*", "section", key.type)
    value = re.sub(r"duration such as .*}", "duration", value)
    only = f" Only for {key.only}." if key.only else ""
    return Row(key.path, re.sub(r"\ban? ", "", value), _default(key), one_line(key.description) + only)


def _line(row: Row, kinds: list[str]) -> str:
    cells = [f"`{row.path}`", row.value, row.default, _kinds(kinds), row.meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |\n"


def _default(key: Key) -> str:
    if key.path == "name":
        return "the file's name"
    if key.field.is_required():
        return "**required**"
    if key.field.default_factory is not None:
        return "by decay"
    value = key.field.default
    if isinstance(value, Section):
        value = value.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()
    return f"`{text}`"


def _kinds(kinds: list[str]) -> str:
    missing = [kind for kind in KINDS.sections if kind not in kinds]
    if not missing:
        return "all"
    return f"all but {', '.join(missing)}" if len(missing) < len(kinds) else ", ".join(kinds)
