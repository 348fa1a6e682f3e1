"""What verify.py and measure.py share: where the bundle and libtorch are, and the report that both write."""

import json
import os
import pathlib
import subprocess
import time

import torch

HERE = pathlib.Path(__file__).resolve().parent
DDK = HERE / "bin" / "ddk"


def environment(**more):
    """Lets programs find libtorch in PyTorch's folder. Keeps the machine's own path, for the driver's library."""
    folders = [str(pathlib.Path(torch.__file__).parent / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(folder for folder in folders if folder), **more}


def machine(device):
    if not device.startswith("cuda"):
        return dict(device=device, torch=torch.__version__, processors=os.cpu_count())
    of = torch.cuda.get_device_properties(torch.device(device))
    return dict(
        device=of.name,
        gigabytes=round(of.total_memory / 1e9, 1),
        capability=f"{of.major}.{of.minor}",
        gpus=torch.cuda.device_count(),
        torch=torch.__version__,
        cudnn=torch.backends.cudnn.version(),
        driver=subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.split("\n")[0],
    )


def reason(error):
    """The last line of an error, which says what happened."""
    return (str(error).strip() or repr(error)).splitlines()[-1][-200:]


class Report:
    """Rows that are printed as they arrive, then written as JSON and as a Markdown table."""

    def __init__(self, name, device, columns):
        self.name, self.columns, self.rows, self.began = name, columns, [], time.time()
        self.machine = machine(device)
        self.commit = (HERE / "commit").read_text().strip().replace("\n", ", ")
        print(self.machine, flush=True)

    def seconds(self):
        return time.time() - self.began

    def add(self, **row):
        self.rows.append({key: str(value).replace("|", "/") for key, value in row.items()})
        print("  ".join(str(row.get(column, "")) for column in self.columns), flush=True)

    def write(self):
        whole = dict(
            commit=self.commit,
            date=time.strftime("%Y-%m-%d"),
            seconds=round(self.seconds()),
            machine=self.machine,
            rows=self.rows,
        )
        (HERE / f"{self.name}.json").write_text(json.dumps(whole, indent=1) + "\n")
        about = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        lines = [f"{whole['date']}, commit {self.commit}; {about}; {whole['seconds']} s.", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "---|" * len(self.columns))
        for row in self.rows:
            lines.append("| " + " | ".join(str(row.get(column, "")) for column in self.columns) + " |")
        (HERE / f"{self.name}.md").write_text("\n".join(lines) + "\n")
        print(f"{self.name}.json and {self.name}.md are written, after {whole['seconds']} s", flush=True)
