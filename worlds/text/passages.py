#!/usr/bin/env python3
"""Writes the text of world 2: one passage from each chosen document, one JSON Lines file per domain. FOLDER/heldout has
passages of other documents, for worlds/evaluate.

    passages.py FOLDER DOCUMENTS...    DOCUMENTS: folders with NAME.jsonl.gz, from tools/demo-text/collect.py

A passage starts at the first empty line after a document's first 1,000 characters. A validation document is only as
long as a sequence, so a whole document would mean its license and its imports. A fixed order by hash decides which
passages fit into a domain's limit."""

import gzip
import hashlib
import json
import pathlib
import sys

# Bytes of text per domain, 8 MB in all. Shares fall from 50 to 1 percent in the order of how much text the packages
# hold, so that no choice looks at a model. Validation takes documents in addition (RESERVE).
LIMITS = {
    "rust": 4_000_000,
    "cpp": 1_600_000,
    "python": 960_000,
    "c": 560_000,
    "prose": 400_000,
    "javascript": 240_000,
    "perl": 160_000,
    "data": 80_000,
}
# About 20 passages.
RESERVE = 120_000
# Passages per domain that no run trains on or validates with.
HELD_OUT = 40

# Characters: what a passage leaves out at the start of its document, how short and how long it may be.
HEAD, SHORTEST, LONGEST = 1_000, 1_000, 6_000
# The same modules again, in the other module format, and compressed code.
TWINS = ("/esm/", "/libesm/", ".min.js")


def passage(text):
    """The passage of a document, or None if the document is too short."""
    start = text.find("\n\n", HEAD)
    if start < 0:
        return None
    text = text[start:].lstrip("\n")[:LONGEST]
    # Ends with a whole line.
    text = text[: text.rfind("\n") + 1]
    return text if len(text) >= SHORTEST else None


def of_domain(name, folders):
    """The passages of a domain with the names of their documents, in an order by hash, each text once."""
    path = next(path for folder in folders if (path := folder / f"{name}.jsonl.gz").exists())
    found = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            if any(part in document["source"] for part in TWINS):
                continue
            if text := passage(document["text"]):
                found.setdefault(text, document["source"])
    return sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def main(folder, *folders):
    heldout = pathlib.Path(folder, "heldout")
    heldout.mkdir(parents=True, exist_ok=True)
    for name, limit in LIMITS.items():
        size = total = 0
        lines, others = [], []
        for text, source in of_domain(name, [pathlib.Path(folder) for folder in folders]):
            length = len(text.encode())
            total += length
            line = json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n"
            if size + length <= limit + RESERVE:
                size += length
                lines.append(line)
            else:
                others.append(line)
        pathlib.Path(folder, f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        # The last ones: far from the border, where passages were left out because of their length.
        (heldout / f"{name}.jsonl").write_text("".join(others[-HELD_OUT:]), encoding="utf-8")
        print(f"{name}: {len(lines)} passages, {size / 1e6:.2f} of {total / 1e6:.2f} MB")


main(*sys.argv[1:])
