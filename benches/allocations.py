"""Counts how often a step asks the C library for memory, and shows whether later steps ask more often.

usage: make build; FOLDER/bin/python benches/allocations.py          FOLDER: from tools/python-env

Runs `ddk train` for 20, 40 and 60 steps with a preloaded library that counts. The differences are those of twenty
steps each. Counts tensors separately: libtorch asks for them aligned, with `posix_memalign`.
"""

import os
import pathlib
import re
import subprocess
import tempfile

from pytorch import CASES, DDK, run_ddk, write_world_apart

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
static atomic_long tensors, others;
int posix_memalign(void **to, size_t alignment, size_t size) {
    static int (*real)(void **, size_t, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "posix_memalign");
    tensors++;
    return real(to, alignment, size);
}
extern void *__libc_malloc(size_t);
void *malloc(size_t size) { others++; return __libc_malloc(size); }
__attribute__((destructor)) static void say(void) {
    fprintf(stderr, "counted %ld tensors %ld others\n", (long)tensors, (long)others);
}
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        library = folder / "counting.so"
        subprocess.run(
            ["gcc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=SOURCE, text=True, check=True
        )
        write_world_apart(folder, CASES["A"])
        run_ddk(folder, ["prepare", "config.toml"])
        counted = []
        for steps in [20, 40, 60]:
            sets = [word for set_ in [f"run.name=of-{steps}", f"run.max_steps={steps}"] for word in ["--set", set_]]
            done = subprocess.run(
                [DDK, "train", "config.toml", *sets],
                cwd=folder,
                env={**os.environ, "LD_PRELOAD": str(library)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            counted.append(
                [int(number) for number in re.search(r"counted (\d+) tensors (\d+) others", done.stderr).groups()]
            )
        for first, last, before, after in [(21, 40, counted[0], counted[1]), (41, 60, counted[1], counted[2])]:
            tensors, others = ((late - early) / 20 for early, late in zip(before, after))
            print(f"steps {first} to {last}: {tensors:.0f} tensors and {others:.0f} other pieces a step")


if __name__ == "__main__":
    main()
