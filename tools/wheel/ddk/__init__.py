"""Runs the program ddk of this package with the PyTorch of its environment."""

import importlib.metadata
import importlib.util
import os
import sys

NEEDED = "2.11"


def main():
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"ddk: there is no PyTorch in {sys.prefix}: run 'pip install torch=={NEEDED}.*'")
    if version.split(".")[:2] != NEEDED.split("."):
        sys.exit(
            f"ddk: the PyTorch in {sys.prefix} is {version}, but this build of ddk needs {NEEDED}: "
            f"run 'pip install torch=={NEEDED}.*', or use another environment"
        )
    package = os.path.dirname(os.path.abspath(__file__))
    environment = dict(os.environ)
    # The program looks for PyTorch beside its package. That is another folder if only one of them is in the user's
    # own site-packages.
    if not os.path.isdir(os.path.join(package, "..", "torch", "lib")):
        torch = importlib.util.find_spec("torch")
        if torch is None or torch.origin is None:
            sys.exit(f"ddk: PyTorch {version} is installed, but Python finds no package 'torch': install it again")
        places = [os.path.join(os.path.dirname(torch.origin), "lib"), environment.get("LD_LIBRARY_PATH")]
        environment["LD_LIBRARY_PATH"] = ":".join(filter(None, places))
    program = os.path.join(package, "bin", "ddk")
    os.execve(program, [program, *sys.argv[1:]], environment)
