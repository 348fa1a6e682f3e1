"""Shows how the memory and the time of `ddk prepare` grow with the number of documents.

usage: make build; python3 benches/corpus_scale.py [MILLIONS...]          (default: 1 20)

Makes JSON Lines files of short documents, one in twenty of them a duplicate, from four domains that a field tells
apart. Prepares them, and prints the peak resident memory, the time, and the documents per second. From the first and
the last size, it computes the bytes of memory per document and extrapolates to 100 million documents. DDK names the
program, and FOLDER the place for the files (20 million documents take about 3 GB).
"""

import os
import pathlib
import shutil
import sys
import tempfile
import time

from worlds import write_tokenizer

DDK = pathlib.Path(os.environ.get("DDK", pathlib.Path(__file__).parent.parent / "target/release/ddk"))
WORDS = 4096
DOMAINS = ["books", "code", "news", "web"]
PER_FILE = 1_000_000
EXTRAPOLATED = 100_000_000


def write_documents(folder, count):
    """Writes lines of about 60 bytes."""
    words = [f"w{word}" for word in range(1, WORDS)]
    for start in range(0, count, PER_FILE):
        with open(folder / f"part-{start // PER_FILE:05}.jsonl", "w") as out:
            for number in range(start, min(start + PER_FILE, count)):
                if number % 20 == 19 and number > 20_007:
                    # A document that is no duplicate itself.
                    number -= 20_007
                text = text_of(words, number)
                kind = DOMAINS[number // 5 % len(DOMAINS)]
                out.write(f'{{"kind": "{kind}", "text": "{text}"}}\n')


def text_of(words, number):
    """Returns another text for each number."""
    size = len(words)
    counted = f"{words[number % size]} {words[number // size % size]} {words[number // size**2]}"
    return f"{counted} {words[number * 7 % size]} {words[number * 31 % size]}"


def prepare(folder):
    """Returns peak resident memory in bytes, seconds, seconds of CPU time, and what the program printed."""
    (folder / "config.toml").write_text(
        '[corpus]\ndir = "prepared"\ntokenizer = "tokenizer"\nsequence_length = 512\n'
        "validation_fraction = 0.001\nvalidation_documents = 500\n"
        + "".join(f'[domains.{name}]\nfiles = ["part-*.jsonl"]\nfilter_field = "kind"\n' for name in DOMAINS)
    )
    said = folder / "said"
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execv(DDK, [DDK, "prepare", "config.toml"])
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - began
    text = said.read_text()
    assert status == 0, text
    return usage.ru_maxrss * 1024, seconds, usage.ru_utime + usage.ru_stime, text


def main():
    counts = [round(float(millions) * 1e6) for millions in sys.argv[1:]] or [1_000_000, 20_000_000]
    peaks = []
    for count in counts:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="corpus-scale-", dir=os.environ.get("FOLDER")))
        try:
            write_tokenizer(folder / "tokenizer", WORDS)
            write_documents(folder, count)
            size = sum(path.stat().st_size for path in folder.glob("part-*"))
            peak, seconds, cpu, text = prepare(folder)
        finally:
            shutil.rmtree(folder)
        peaks.append(peak)
        print(
            f"{count / 1e6:g} million documents, {size / 1e6:.0f} MB: {peak / 1e6:.0f} MB resident, {seconds:.1f} s"
            f" ({cpu:.1f} s of CPU), {count / seconds:.0f} documents/s",
            flush=True,
        )
        if os.environ.get("VERBOSE"):
            print(text)
    if len(counts) > 1:
        growth = (peaks[-1] - peaks[0]) / (counts[-1] - counts[0])
        expected = peaks[-1] + growth * (EXTRAPOLATED - counts[-1])
        print(f"{growth:.2f} bytes per document; {EXTRAPOLATED / 1e6:g} million: {expected / 1e6:.0f} MB, extrapolated")


if __name__ == "__main__":
    main()
