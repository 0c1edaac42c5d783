"""Corpora larger than memory: what `sprachbund audit` needs for two gigabytes of text, and how fast it is.

    python benchmarks/corpora.py [--gigabytes 2] [--compared-megabytes 100] [--work FOLDER]

Four made-up languages (.jsonl, .jsonl.zst in three shards, .txt.gz, .parquet) are written, and a recipe with a
tokenizer from scratch. `audit` does what the first stages of a run do: it reads, cuts, trains the tokenizer, tokenises
and packs. Measured are its seconds and its memory: the most that the process has had resident plus the most that its
workers have had, by the kernel's own count, which is no less than all had at any one moment; then the same with
everything in the cache.

Beside it, on less text, what 0.1 did (corpora_before.py) and what is done now, each in a process of its own
with an empty cache and the same tokenizer: the ratio, and that the stream is the same to the bit. And the ways to
tokenise: the library's threads, one thread, and worker processes.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard
from runs import RESULTS, machine

LETTERS = {
    "ron_Latn": "aeiouăîșțrlnmcdpst",
    "ita_Latn": "aeiourlnmtcvgpsd",
    "rus_Cyrl": "аеиоурлнмтквыэдспг",
    "hin_Deva": "कखगघचजटडतदनपबमयरलवसहािीुेो",
}
PARTS = {"ron_Latn": 0.4, "ita_Latn": 0.3, "rus_Cyrl": 0.15, "hin_Deva": 0.15}
FILES = {"ron_Latn": "ron.jsonl", "ita_Latn": "ita-*.jsonl.zst", "rus_Cyrl": "rus.txt.gz", "hin_Deva": "hin.parquet"}
SECONDS_BETWEEN = 0.5
LIMIT_MB = 1500
RECIPE = """\
name: large
base: {scratch: {vocab_size: 8000}}
languages:
%s
groups: {count: 2}
train: {tokens: 100_000_000}
"""


def documents(tag: str, num_bytes: float) -> Iterator[str]:
    """Yield documents of a made-up language, of one to a dozen lines, no line twice."""
    draw = random.Random(tag)
    words = ["".join(draw.choices(LETTERS[tag], k=draw.randint(2, 9))) for _ in range(50_000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    sentences = [" ".join(draw.choices(words, cum_weights=weights, k=draw.randint(8, 30))) for _ in range(20_000)]
    line = written = 0
    while written < num_bytes:
        lines = []
        for sentence in draw.choices(sentences, k=draw.randint(1, 12)):
            line += 1
            lines.append(f"{line} {sentence}")
        document = "\n".join(lines)
        written += len(document.encode())
        yield document


def as_jsonl(texts: Iterator[str]) -> Iterator[bytes]:
    return (json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def write_corpora(folder: Path, num_bytes: float) -> None:
    """Write the corpora and the recipe."""
    folder.mkdir(parents=True)
    with (folder / "ron.jsonl").open("wb") as file:
        file.writelines(as_jsonl(documents("ron_Latn", num_bytes * PARTS["ron_Latn"])))
    texts = documents("ita_Latn", num_bytes * PARTS["ita_Latn"])
    shards = [zstandard.open(folder / f"ita-{n}.jsonl.zst", "wb") for n in range(3)]
    for number, data in enumerate(as_jsonl(texts)):
        shards[number % 3].write(data)
    for shard in shards:
        shard.close()
    with gzip.open(folder / "rus.txt.gz", "wb", compresslevel=1) as packed:
        for text in documents("rus_Cyrl", num_bytes * PARTS["rus_Cyrl"]):
            packed.write(text.replace("\n", " ").encode() + b"\n")
    schema = pyarrow.schema([("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(folder / "hin.parquet", schema) as table:
        batch: list[str] = []
        for text in documents("hin_Deva", num_bytes * PARTS["hin_Deva"]):
            batch.append(text)
            if len(batch) == 20_000:
                table.write_table(pyarrow.table({"text": batch}, schema=schema))
                batch = []
        table.write_table(pyarrow.table({"text": batch}, schema=schema))
    languages = "\n".join(f'  {tag}: "{name}"' for tag, name in FILES.items())
    (folder / "recipe.yaml").write_text(RECIPE % languages)


def high_water_marks(root: int) -> dict[int, float]:
    """Return the most megabytes that a process, and each one below it, has had resident so far, by the kernel's count.

    A child that has not begun its own program yet is still a copy of its parent, and no memory of its own.
    """
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    found = {}
    for pid in tree:
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if pid != root and command == Path(f"/proc/{root}/cmdline").read_bytes():
                continue
            status = Path(f"/proc/{pid}/status").read_text().split()
            if "VmHWM:" in status:
                found[pid] = int(status[status.index("VmHWM:") + 1]) * 1024 / 1e6
    return found


def measured(command: list[str], cache: Path) -> tuple[dict[str, Any], str]:
    """Run a command; return its seconds and peak memory, and what it printed."""
    begun = time.monotonic()
    environment = {**os.environ, "SPRACHBUND_CACHE": str(cache)}
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, env=environment, stdout=out)
        parent = workers = 0.0
        most = 0
        while process.poll() is None:
            marks = high_water_marks(process.pid)
            parent = max(parent, marks.pop(process.pid, 0.0))
            workers, most = max(workers, sum(marks.values())), max(most, len(marks))
            time.sleep(SECONDS_BETWEEN)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        out.seek(0)
        printed = out.read()
    seconds = round(time.monotonic() - begun, 1)
    memory = {"peak_rss_mb": round(parent + workers), "parent_rss_mb": round(parent), "workers_rss_mb": round(workers)}
    return {"seconds": seconds, **memory, "workers": most}, printed


def folder_mb(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6)


def audit(folder: Path) -> dict[str, Any]:
    """Measure `sprachbund audit` on the corpora, with an empty cache and then with a full one."""
    cache = folder / "cache"
    command = [sys.executable, "-m", "sprachbund", "audit", str(folder / "recipe.yaml"), "--json"]
    first, printed = measured(command, cache)
    again, printed_again = measured(command, cache)
    assert printed == printed_again
    rows = json.loads(printed)
    text_mb = sum(row["bytes"] for row in rows) / 1e6
    return {
        "files_mb": folder_mb(folder) - folder_mb(cache),
        "train_text_mb": round(text_mb),
        "documents": sum(row["documents"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "first": {**first, "mb_per_second": round(text_mb / first["seconds"], 2)},
        "again": {**again, "mb_per_second": round(text_mb / again["seconds"], 2)},
        "cache_mb": folder_mb(cache),
    }


def compared(folder: Path, num_bytes: float) -> dict[str, Any]:
    """Measure the way before and the way now on what fits in memory, in turn, each twice; the better counts."""
    folder.mkdir(parents=True)
    with (folder / "ron.jsonl").open("wb") as file:
        file.writelines(as_jsonl(documents("ron_Latn", num_bytes)))
    script = Path(__file__).with_name("corpora_before.py")
    subprocess.run([sys.executable, script, "tokenizer", folder], check=True)
    runs: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    digests = set()
    for _ in range(2):
        for way in runs:
            cache = folder / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            facts, printed = measured([sys.executable, str(script), way, str(folder)], cache)
            runs[way].append({**facts, **json.loads(printed)})
            digests.add(runs[way][-1].pop("sha256"))
    best = {way: min(found, key=lambda run: float(run["seconds"])) for way, found in runs.items()}
    assert len(digests) == 1, "the streams differ"
    return {
        "text_mb": round(num_bytes / 1e6),
        **best,
        "times_as_fast": round(best["before"]["seconds"] / best["now"]["seconds"], 2),
        "share_of_memory": round(best["now"]["peak_rss_mb"] / best["before"]["peak_rss_mb"], 2),
        "same_stream": True,
    }


def tokenising(folder: Path) -> dict[str, float]:
    """Return the megabytes of text a second of every way to tokenise, in processes of their own."""
    script = Path(__file__).with_name("corpora_before.py")
    found = {}
    for way, threads in (("library_threads", "true"), ("one_thread", "false"), ("worker_processes", "false")):
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": threads}
        done = subprocess.run(
            [sys.executable, script, way, folder], env=environment, check=True, capture_output=True, text=True
        )
        found[way] = round(float(done.stdout), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of text")
    parser.add_argument("--compared-megabytes", type=float, default=100.0, help="for before and now")
    parser.add_argument("--work", type=Path, help="where the text is written; a temporary folder")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="corpora-", dir=given.work))
    try:
        write_corpora(work / "large", given.gigabytes * 1e9)
        large = audit(work / "large")
        print(json.dumps(large), flush=True)
        shutil.rmtree(work / "large")
        comparison = compared(work / "compared", given.compared_megabytes * 1e6)
        ways = tokenising(work / "compared")
    finally:
        shutil.rmtree(work)
    peak = large["first"]["peak_rss_mb"]
    bars = [{"bar": "peak memory, MB", "values": [peak], "at_most": LIMIT_MB, "holds": peak <= LIMIT_MB}]
    content = {**machine(), "bars": bars, "audit": large, "compared": comparison, "tokenising_mb_per_second": ways}
    print(json.dumps(content, indent=1))
    (RESULTS / "corpora.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
