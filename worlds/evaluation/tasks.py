#!/usr/bin/env python3
"""Writes tasks for lm-evaluation-harness from the held-out passages of world 2: two per domain.

    tasks.py HELDOUT FOLDER    HELDOUT: the folder that worlds/text/passages.py wrote

world_bits_DOMAIN: bits per byte of the first characters of each passage.
world_cloze_DOMAIN: which of four lines comes next? The wrong ones follow other passages of the domain and are about as
long. All four have the indentation of the right one. Chance: 25 percent."""

import hashlib
import json
import pathlib
import sys

BITS_CHARACTERS = 1_000
# Characters of the lines before the question, and of a line that can be an answer.
CONTEXT, ANSWER = 250, range(16, 101)
CHOICES = 4

TASK = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
"""
BITS = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
"""
CLOZE = """output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


def question(text):
    """The first lines of a passage, and the next line that can be an answer; None if there is none."""
    lines = text.split("\n")
    context = ""
    for line in lines:
        if len(context) >= CONTEXT and len(line.strip()) in ANSWER:
            return context, line.rstrip()
        context += line + "\n"
    return None


def order(*parts):
    """A number from a hash: an order that is the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8])


def cloze(texts):
    """The questions of a domain."""
    found = [pair for text in texts if (pair := question(text))]
    for context, right in found:
        indentation, stripped = right[: len(right) - len(right.lstrip())], right.strip()
        others = {line.strip() for _, line in found} - {stripped}
        # The closest in length; equals in an order by hash.
        nearest = sorted(others, key=lambda line: (abs(len(line) - len(stripped)), order(context, line)))
        choices = [stripped, *nearest[: CHOICES - 1]]
        if len(choices) < CHOICES:
            raise SystemExit(f"tasks.py: {len(choices)} different answers in a domain, expected at least {CHOICES}")
        choices.sort(key=lambda line: order(line, context))
        yield {
            "context": context,
            "choices": [indentation + line for line in choices],
            "right": choices.index(stripped),
        }


def write(folder, task, records, form):
    """A task and its data."""
    file = folder / f"{task}.jsonl"
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    (folder / f"{task}.yaml").write_text(TASK.format(task=task, file=file) + form, encoding="utf-8")


def main(heldout, folder):
    folder = pathlib.Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(pathlib.Path(heldout).glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        write(folder, f"world_bits_{path.stem}", [{"text": text[:BITS_CHARACTERS]} for text in texts], BITS)
        write(folder, f"world_cloze_{path.stem}", cloze(texts), CLOZE)


main(*sys.argv[1:])
