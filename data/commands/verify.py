"""`python -m data verify`."""

import argparse
import sys
from collections import Counter

from tqdm import tqdm

from data.commands.old_sets import faults_of_old_sets, is_old
from data.commands.parsing import Commands, Outcome, facts, summary
from data.packing.verify import Checked, Fault, faults_of_the_whole, verify
from data.parallel import usable_cpus
from data.progress import Progress
from data.shards.index import open_index

HELP = """\
Read every shard and compare it with the index: length, SHA-256, tar structure, number of samples, byte offsets, keys,
image and label fields, labels within the classes. Also search for tars that are not in the index. Of a set that an
earlier version of this program packed, say which of its faults it has: keys that repeat, class folders "0", "1", "10",
"2" ... that are sorted as text, system folders as classes.

Each fault is printed as a line `SHARD: FAULT`. The exit code is 0 without faults and 1 with any.
"""


def add(commands: "Commands[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the command to the command line."""
    command = commands.add_parser(
        "verify",
        help="check every shard against the index",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("url", metavar="URL", help="the data set's folder or its index.json")
    command.add_argument("--decode", action="store_true", help="also decode every image")
    command.add_argument(
        "--workers",
        type=int,
        default=usable_cpus(),
        metavar="N",
        help="most processes, which start if that ends sooner (one a core)",
    )
    command.set_defaults(run=lambda options: run_verify(command, options))
    return command


def run_verify(command: argparse.ArgumentParser, options: argparse.Namespace) -> Outcome:
    if options.workers < 1:
        command.error("--workers is at least 1")
    index = open_index(options.url)
    faults: list[Fault] = []
    hashes: dict[str, str] = {}
    label_counts: Counter[int] = Counter()
    checks: list[Checked] = []
    samples = read = 0

    def report(these: list[Fault]) -> None:
        for fault in these:
            tqdm.write(str(fault), file=sys.stdout)  # above the bar, if there is one
        faults.extend(these)

    with Progress("verify", "bytes", index.num_bytes) as progress:
        found = verify(index, decode=options.decode, workers=options.workers, keys=is_old(index))
        for shard, (name, checked) in zip(index.shards, found, strict=True):
            report([Fault(name, what) for what in checked.faults])
            checks.append(checked)
            hashes[name] = checked.sha256
            label_counts.update(checked.label_counts)
            samples, read = samples + checked.samples, read + checked.bytes
            progress.advance(shard.bytes)
        report(faults_of_the_whole(index, hashes, label_counts))
        report(faults_of_old_sets(index, checks))
    faulty = len({fault.shard for fault in faults})
    result = f"{_counted(len(faults), 'fault')} in {_counted(faulty, 'file')}" if faults else "no faults"
    print(f"{result}: {summary(index)}")
    found_facts = {
        "samples_read": samples,
        "bytes_read": read,
        "decoded": options.decode,
        "faults": [{"shard": fault.shard, "what": fault.what} for fault in faults],
    }
    return facts(index) | found_facts, 1 if faults else 0


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
