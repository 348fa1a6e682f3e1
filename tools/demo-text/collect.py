#!/usr/bin/env python3
"""Collects the documents that the demo's text is chosen from, one gzipped JSON Lines file per domain.

    collect.py wheel WHEEL FOLDER    cpp and python: the headers and the modules in torch's wheel
    collect.py packages FOLDER       data, prose and rust: the packages that Cargo.lock beside this file names

Other text, for example of worlds/text, comes from another wheel, or from the packages of another manifest:

    collect.py wheel WHEEL FOLDER DOMAIN=.EXTENSION,...
    collect.py packages FOLDER MANIFEST DOMAIN=.EXTENSION,...

A line has a document's name ("source") and its text ("text"); the lines are sorted by name. The same wheel and the same
lock file give the same lines on every machine."""

import gzip
import json
import pathlib
import subprocess
import sys
import zipfile

# A shorter document says little; a longer one is mostly a generated table.
DOCUMENT_BYTES = range(256, 49_152 + 1)

OF_WHEEL = {"cpp": {".h", ".hpp", ".cuh"}, "python": {".py"}}
OF_PACKAGES = {"data": {".toml", ".json", ".yml", ".yaml"}, "prose": {".md", ".txt"}, "rust": {".rs"}}

# The packages of one fixed platform, whatever machine this runs on.
PLATFORM = "x86_64-unknown-linux-gnu"


def of_wheel(wheel):
    """Name, length and reader of each file in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            yield entry.filename, entry.file_size, lambda entry=entry: archive.read(entry)


def of_packages(manifest):
    """Name, length and reader of each file of the manifest's packages; cargo downloads those that are missing."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={PLATFORM}"]
    output = subprocess.run([*command, f"--manifest-path={manifest}"], check=True, stdout=subprocess.PIPE).stdout
    for package in json.loads(output)["packages"]:
        if package["source"] is None:
            continue
        root = pathlib.Path(package["manifest_path"]).parent
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                name = f"{package['name']}-{package['version']}/{path.relative_to(root).as_posix()}"
                yield name, path.stat().st_size, path.read_bytes


def write(folder, domains, files):
    """Writes each domain's documents: files with its extensions, of a fitting length, in UTF-8."""
    documents = {domain: [] for domain in domains}
    for name, length, read in files:
        extension = pathlib.PurePosixPath(name).suffix
        for domain, extensions in domains.items():
            if extension in extensions and length in DOCUMENT_BYTES:
                try:
                    documents[domain].append((name, read().decode("utf-8")))
                except UnicodeDecodeError:
                    pass
    for domain, found in documents.items():
        if not found:
            raise SystemExit(f"demo text: there are no documents for the domain {domain}")
        # Without a time stamp, so that the file's bytes follow from its content.
        with gzip.GzipFile(f"{folder}/{domain}.jsonl.gz", "wb", compresslevel=6, mtime=0) as out:
            for name, text in sorted(found):
                line = json.dumps({"source": name, "text": text}, ensure_ascii=False)
                out.write(line.encode("utf-8") + b"\n")


def domains_of(arguments):
    """The domains that DOMAIN=.EXTENSION,... arguments declare."""
    pairs = [argument.partition("=") for argument in arguments]
    if not pairs or not all(name and extensions.startswith(".") for name, _, extensions in pairs):
        raise SystemExit(__doc__)
    return {name: set(extensions.split(",")) for name, _, extensions in pairs}


def main(arguments):
    what, *arguments = arguments or [""]
    if what == "wheel" and len(arguments) >= 2:
        wheel, folder, *others = arguments
        write(folder, domains_of(others) if others else OF_WHEEL, of_wheel(wheel))
    elif what == "packages" and len(arguments) == 1:
        write(arguments[0], OF_PACKAGES, of_packages(pathlib.Path(__file__).resolve().parent / "Cargo.toml"))
    elif what == "packages" and len(arguments) >= 3:
        folder, manifest, *others = arguments
        write(folder, domains_of(others), of_packages(manifest))
    else:
        raise SystemExit(__doc__)


main(sys.argv[1:])
