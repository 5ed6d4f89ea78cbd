"""Files from unknown sources are read, and never run: running one would leave a mark, and there must be none.

Pickles in the place of checkpoint files, and manifests that name other files, are in checkpoint/test_restore.py;
indexes and lists that contradict themselves in data/; spooled metrics in tracking/test_spool.py.
"""

import ast
import gzip
import io
import json
import pickle
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data import Augment, DataError, Loader, SampleOrder, open_index
from data.errors import Cause
from data.order.exclude import open_exclusions
from data.packing.scan import index_shards, scan_shard
from orchestrator.__main__ import main
from orchestrator.job.errors import JobError
from orchestrator.job.load import load_job
from orchestrator.run.folder import open_run, run_url
from orchestrator.run.paths import absolute
from orchestrator.run.summary import read_summary
from tests.paths import ROOT
from tests.tars import uniform_index

DIGITS = ROOT / "jobs" / "pretrain_digits.yaml"
LIMIT = 60  # seconds: for what would never end


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that hostile content would make. Afterwards it is not there."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


class Endless(BaseException):
    """Not an Exception, so that no `except Exception` takes it for an error of its own."""


@contextmanager
def ends() -> Iterator[None]:
    """What is done here comes to an end."""

    def interrupt(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def payloads(mark: Path) -> dict[str, bytes]:
    """The same act in the languages that some loader would run."""
    array = io.BytesIO()
    np.save(array, np.array([Touch(mark)], dtype=object), allow_pickle=True)
    call = f"!!python/object/apply:os.system ['touch {mark}']"
    return {
        "pickle": pickle.dumps(Touch(mark)),
        "npy": array.getvalue(),
        "yaml": f"{call}\n".encode(),
        "yaml value": f"kind: {call}\n".encode(),
        "yaml object": f"kind: !!python/object/new:subprocess.Popen [[touch, {mark}]]\n".encode(),
        "python": f"__import__('os').system('touch {mark}')".encode(),
        "deep": b"[" * 5_000,
        "binary": bytes(range(256)),
    }


KINDS = [*payloads(Path("x"))]


def test_the_payloads_are_live(mark: Path) -> None:
    pickle.loads(payloads(mark)["pickle"])
    assert mark.exists()
    mark.unlink()
    np.load(io.BytesIO(payloads(mark)["npy"]), allow_pickle=True)
    assert mark.exists()
    mark.unlink()


# --------------------------------------------------------------------------------------------------------------- shards


def png() -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1])


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_fields_of_samples_are_data(tmp_path: Path, mark: Path) -> None:
    """WebDataset's own decoders would unpickle .pyd, .pkl and .npy. Here they are not even looked at."""
    image, good, bad = png(), [], []
    for number, content in enumerate(payloads(mark).values()):
        good += [(f"{number}a.png", image), (f"{number}a.cls", b"1")]
        good += [
            (f"{number}a.{extension}", content) for extension in ("pyd", "pkl", "pickle", "npy", "npz", "pth", "yaml")
        ]
        bad += [(f"{number}b.png", image), (f"{number}b.cls", content)]
        bad += [(f"{number}c.png", image), (f"{number}c.json", content)]
        bad += [(f"{number}d.png", content), (f"{number}d.cls", b"1")]
    write_tar(tmp_path / "set" / "0.tar", good + bad)
    with ends():
        index, _ = index_shards(str(tmp_path / "set"), num_classes=2)
        assert index.num_samples == 4 * len(KINDS)
        order = SampleOrder(index, batch_size=index.num_samples, shuffle=False)
        options = {"rank": 0, "world_size": 1, "image_size": 8, "augment": Augment("resize"), "seed": 0, "threads": 1}
        with Loader(index, order, stop_step=1, **options) as batches:
            (batch,) = batches
    causes = [sample.cause for sample in batch.bad]
    assert sorted(batch.ids[batch.valid].tolist()) == list(range(len(KINDS)))
    assert causes.count(Cause.BAD_LABEL) == 2 * len(KINDS)
    assert causes.count(Cause.UNDECODABLE) == len(KINDS)


def test_nothing_is_unpacked(tmp_path: Path) -> None:
    """Names that lead elsewhere, links and devices make no file and are followed nowhere."""
    (tmp_path / "secret.png").write_bytes(png())
    names = ("../../outside.png", "/tmp/hostile-outside.png", "a/../../b.png")
    members = [(tarfile.TarInfo(name), png()) for name in names]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo(f"{kind.decode()}.png")
        info.type, info.linkname = kind, str(tmp_path / "secret.png")
        members.append((info, b""))
    folder = tmp_path / "deep" / "set"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0.tar", "w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    before = set(tmp_path.rglob("*"))
    shard, _ = scan_shard(str(folder), "0.tar")
    assert shard.samples == 3, "links and devices are no samples"
    assert set(tmp_path.rglob("*")) == before
    assert not Path("/tmp/hostile-outside.png").exists()


def header(size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with a right checksum and any size field."""
    block = bytearray(tarfile.TarInfo("000000.png").tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record: bytes) -> bytes:
    return header(b"%011o" % len(record), b"x") + record.ljust(512, b"\0") + header(b"%011o" % 0)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(bytes(64 << 20)),  # a small file of many zeros
        header(b"-0000001000") * 4,  # an entry that ends where it begins
        header(b"\xff" * 12) * 4,
        header(b"\x80" + b"\x7f" * 11) * 4,
        header(b"77777777777") * 4,
        header(b"9z") * 4,
        pax(b"12 size=-512"),
        pax(b"13 size=words"),
        pax(b"0 path=x"),
        pax(b"-9 path=x"),
        pax(b"999 path=x"),
        pax(b"no length"),
        pax(b"13 path=\xff\xfe\x00"),
        *payloads(Path("/tmp/hostile-executed")).values(),
    ],
    ids=lambda content: f"{len(content)} bytes {content[124:136]!r} {content[512:524]!r}",
)
def test_tars_that_lie(content: bytes, tmp_path: Path) -> None:
    """An error of one line, or a shard that holds nothing whole; always an end, in little memory."""
    (tmp_path / "0.tar").write_bytes(content)
    told = ""
    with ends():
        try:
            _, contents = scan_shard(str(tmp_path), "0.tar")
        except DataError as error:
            told = str(error)
    assert told.startswith(str(tmp_path)) if told else contents.num_classes == 0
    assert "\n" not in told
    assert not Path("/tmp/hostile-executed").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_and_a_list_of_exclusions(kind: str, tmp_path: Path, mark: Path) -> None:
    (tmp_path / "index.json").write_bytes(payloads(mark)[kind])
    with pytest.raises(DataError) as refused:
        open_index(str(tmp_path))
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError) as refused:
        open_exclusions(str(tmp_path / "index.json"), uniform_index([1], 1, 512))
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------------------ job files

ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))])
MAPPINGS = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}" for n in range(1, 60))])
BOMBS = {
    "aliases": ALIASES,
    "merges": MERGES,
    "mappings": MAPPINGS,
    "aliases as tags": f"{ALIASES}\nkind: pretrain\ntracking: {{tags: *a59}}",
    "aliases as a grid": f"kind: sweep\nbase: {DIGITS}\ngrid: {{optimizer.lr: [&b0 [1], &b1 [*b0, *b0], [*b1, *b1]]}}",
    "itself": "kind: pretrain\nmodel: &m {name: *m}",
    "a long number": f"batch_size: {'9' * 10_000}",
    "no such day": "name: 2026-99-99",
}


@pytest.mark.parametrize("kind", [*KINDS, *BOMBS])
def test_a_job_file(kind: str, tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = BOMBS[kind].encode() if kind in BOMBS else payloads(mark)[kind]
    (tmp_path / "job.yaml").write_bytes(content)
    with ends():
        assert main(["run", str(tmp_path / "job.yaml")]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: {tmp_path}/job.yaml:")
        lines = told.splitlines()
        assert 1 <= len(lines) <= 11  # ten mistakes, and how many more there are
        assert all(line.startswith("error: ") for line in lines)
        assert all(len(line) < 1000 for line in lines)
        if b"\0" not in content and kind != "deep":
            with pytest.raises(JobError):
                load_job(DIGITS, [f"tracking.tags={content.decode()}"])


@pytest.mark.parametrize("kind", [*KINDS, *BOMBS])
@pytest.mark.parametrize("name", ["run.json", "job.yaml", "summary.json"])
def test_the_folder_of_a_run(name: str, kind: str, tmp_path: Path, mark: Path) -> None:
    job = absolute(load_job(DIGITS, [f"checkpoint.url={tmp_path}"]))
    open_run(job, "digest")
    content = BOMBS[kind].encode() if kind in BOMBS else payloads(mark)[kind]
    (Path(run_url(job)) / name).write_bytes(content)
    with ends():
        assert read_summary(job) is None
        if name != "summary.json":
            with pytest.raises(JobError, match=rf"{name} is damaged \([\w ]+\); move") as refused:
                open_run(job, "digest")
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "record",
    [
        {"id": "../../elsewhere", "train": "digest"},
        {"id": "' OR tags.a = 'b", "train": "digest"},
        {"id": ["a"], "train": "digest"},
        {"train": "digest"},
    ],
)
def test_an_identity_that_is_none(record: object, tmp_path: Path) -> None:
    job = absolute(load_job(DIGITS, [f"checkpoint.url={tmp_path}"]))
    open_run(job, "digest")
    (Path(run_url(job)) / "run.json").write_text(json.dumps(record))
    with pytest.raises(JobError, match=r"run\.json is damaged"):
        open_run(job, "digest")


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "60"},
        {"metrics": {"eval/x": 1.0}},
        {"metrics": {"eval/x/loss": "%s" * 99}},
        {"metrics": None},
        {"totals": {"__class__": 1}},
        {"device": None},
        {"workers": "2"},
        {"images_per_second": [1]},
    ],
    ids=str,
)
def test_a_summary_of_something_else(changes: dict[str, object], tmp_path: Path) -> None:
    from orchestrator.run.totals import Totals

    job = absolute(load_job(DIGITS, [f"checkpoint.url={tmp_path}"]))
    open_run(job, "digest")
    summary = {"step": 60, "metrics": {"train/learning_rate": 1e-05}, "images_per_second": 1.0, "workers": 1}
    summary |= {"totals": Totals().to_dict(), "device": {"name": "x", "peak_flops": 1e12, "peak_is": "measured"}}
    summary |= {"mlflow_run_id": None, "mlflow": "somewhere"}
    path = Path(run_url(job)) / "summary.json"
    path.write_text(json.dumps(summary))
    assert read_summary(job) == summary
    path.write_text(json.dumps({**summary, **changes}))
    assert read_summary(job) is None


# ------------------------------------------------------------------------------------------------------------- the code

PACKAGES = ("data", "model", "orchestrator", "infra", "benchmarks")
RUNNING = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "pandas"}
CALLS = {"eval", "exec", "compile", "torch.load", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
CALLS |= {"yaml.load_all", "runpy.run_path", "extractall", "extract", "unpack_archive", "shutil.unpack_archive"}


def test_no_module_uses_what_runs_files() -> None:
    """Ray pickles what it sends between its own processes; that is not a file, and not our call."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    nodes = [(path, node) for path in files for node in ast.walk(ast.parse(path.read_text()))]
    found = [f"{path.relative_to(ROOT)}: {fault}" for path, node in nodes if (fault := uses(node)) is not None]
    assert not found


def uses(node: ast.AST) -> str | None:
    match node:
        case ast.Import(names=names):
            return next((name.name for name in names if name.name.partition(".")[0] in RUNNING), None)
        case ast.ImportFrom(module=str(module)):
            return module if module.partition(".")[0] in RUNNING else None
        case ast.Call(func=function, args=words, keywords=options):
            name = ast.unparse(function)
            given = {option.arg: ast.unparse(option.value) for option in options}
            if given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False":
                return f"{name}({given})"
            if name == "torch.load" and given.get("weights_only") == "True":
                return None
            if name == "yaml.load" and ast.unparse(words[1]) not in ("_Loader", "_NoAliases", "yaml.SafeLoader"):
                return name
            return name if name in CALLS or name.endswith(".extractall") else None
    return None


def test_that_test_can_fail() -> None:
    for line in (
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "yaml.load(x, yaml.Loader)",
        "archive.extractall()",
        "subprocess.run(x, shell=True)",
        "eval(x)",
    ):
        assert any(uses(node) for node in ast.walk(ast.parse(line))), line
    for line in ("torch.load(x, weights_only=True)", "np.load(x)", "model.eval()", "yaml.load(x, _Loader)"):
        assert not any(uses(node) for node in ast.walk(ast.parse(line))), line
