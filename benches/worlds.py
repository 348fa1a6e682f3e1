"""What the benchmarks' worlds share: a tokenizer of made-up words, and documents of randomly drawn words."""

import json
import random


def write_tokenizer(folder, vocabulary):
    """Writes a Hugging Face tokenizer of `vocabulary` words into a folder, which may contain a model."""
    words = {"<end>": 0, **{f"w{word}": word for word in range(1, vocabulary)}}
    end = dict(id=0, content="<end>", single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    tokenizer = dict(
        version="1.0",
        added_tokens=[end],
        pre_tokenizer=dict(type="WhitespaceSplit"),
        model=dict(type="WordLevel", vocab=words, unk_token="<end>"),
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(eos_token="<end>")))


def write_text(files, vocabulary, documents, length):
    """Writes this many documents of `length` words into each file."""
    numbers = random.Random(0)
    for file in files:
        texts = (" ".join(f"w{numbers.randrange(1, vocabulary)}" for _ in range(length)) for _ in range(documents))
        file.write_text("".join(json.dumps(dict(text=text)) + "\n" for text in texts))
