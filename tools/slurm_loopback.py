#!/usr/bin/env python3
"""Runs the jobs of deploy/slurm on a real Slurm of four nodes, all on this machine: munged, slurmctld and four slurmd.
torchrun is real, and tools/slurm_stand_in.py stands in for ddk and vllm.

tools/deploy-check starts this program as root in its own network, mount, host name and process namespaces. So the nodes
have names and addresses of their own, no port is in use, and all processes end with the namespaces.

usage: tools/slurm_loopback.py FOLDER TORCHRUN      Each check prints a line. The exit code is 1 if one failed."""

import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

TOOLS = pathlib.Path(__file__).resolve().parent
SLURM = TOOLS.parent / "deploy" / "slurm"
NODES = [f"n{i}" for i in (1, 2, 3, 4)]
# One job needs 2 nodes with 2 processes each.
RANKS = 4
# Slurm ends a job between 60 s and 120 s before this limit; the rest is for a busy machine.
LIMIT_MINUTES, PATIENCE_SECONDS = 2, 180
POLL_SECONDS = 0.5

# Nodes 3 and 4 are for preemption: an urgent job replaces those of the two other partitions there.
CONF = """
ClusterName=loopback
SlurmctldHost=n1
SlurmctldPort=6817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job in the queue again waits for cred_expire seconds.
AuthInfo=socket={folder}/munge.sock,cred_expire=10
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MpiDefault=none
# The nodes claim more CPUs than the machine has. Debian's slurmd listens on all addresses.
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=n[1-2] Default=YES
PartitionName=grace Nodes=n[3-4] PriorityTier=1 GraceTime=60
PartitionName=nograce Nodes=n[3-4] PriorityTier=1
PartitionName=urgent Nodes=n[3-4] PriorityTier=2 PreemptMode=OFF
"""


class Failed(Exception):
    """What a check found instead of what it expected."""


def expect(found, expected, what):
    if found != expected:
        raise Failed(f"{what}: {found!r}, expected {expected!r}")


def run(*command, **more):
    # A busy controller may close a connection, which kills the client. Asking again changes nothing.
    tries = 5 if command[:2] == ("scontrol", "show") else 1
    for _ in range(tries):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, **more)
        if ended.returncode != -signal.SIGPIPE:
            break
    if ended.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} ended with {ended.returncode}: {ended.stderr.strip()}")
    return ended.stdout


def until(what, found):
    """Polls until `found` returns something true, and returns it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if answer := found():
            return answer
        time.sleep(POLL_SECONDS)
    raise Failed(f"{what}: not within {PATIENCE_SECONDS} s")


class Cluster:
    """The Slurm of these namespaces, and the folder that its nodes share."""

    def __init__(self, folder, torchrun):
        self.folder, self.torchrun = folder, torchrun
        self.work, self.records = folder / "work", folder / "records"
        for path in (self.work, self.records, folder / "state"):
            path.mkdir()
        self.addresses()
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, nodes="\n".join(
            f"NodeName={node} CPUs=64 Port={port}" for port, node in enumerate(NODES, 6818))))
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
        run("munged", "--force", f"--socket={folder}/munge.sock", f"--key-file={key}", *files)
        run("hostname", "n1")
        run("slurmctld", "-c")
        for node in NODES:
            run("unshare", "--uts", "sh", "-c", f"hostname {node} && exec slurmd")
        until("idle nodes", lambda: run("sinfo", "-h", "-N", "-p", "main,urgent", "-o", "%t").split() == ["idle"] * 4)

    def addresses(self):
        """Gives each node an address and a name. Slurm ignores loopback addresses if a machine has no others."""
        run("ip", "link", "set", "lo", "up")
        lines = ["127.0.0.1 localhost"]
        for number, node in enumerate(NODES, 1):
            run("ip", "address", "add", f"10.77.0.{number}/32", "dev", "lo")
            lines.append(f"10.77.0.{number} {node}")
        hosts = self.folder / "hosts"
        hosts.write_text("\n".join(lines) + "\n")
        run("mount", "--bind", hosts, "/etc/hosts")

    def submit(self, script, *options, arguments=(), **variables):
        """Submits a job of deploy/slurm with few CPUs and no GPUs; returns its number."""
        stand_in = str(TOOLS / "slurm_stand_in.py")
        environment = {**os.environ, "DDK": stand_in, "VLLM": stand_in, "TORCHRUN": self.torchrun, "PROCESSES": "2",
                       "RECORDS": str(self.records), **variables}
        small = ["--gpus-per-node=0", "--cpus-per-task=4"]
        return int(run("sbatch", "--parsable", *small, *options, SLURM / script, *arguments, cwd=self.work,
                       env=environment))

    def urgent(self):
        """A job that needs all of both nodes for a moment."""
        run("sbatch", "--partition=urgent", "--nodes=2", "--ntasks-per-node=64", "--output=urgent.log", "--wrap=true",
            cwd=self.work)

    def events(self, job, start=0, restart=0):
        """What the processes of one start of a job recorded, by rank."""
        found = {}
        for path in self.records.glob(f"{job}.{start}.{restart}.*"):
            lines = path.read_text().splitlines(keepends=True)
            found[int(path.suffix[1:])] = [json.loads(line) for line in lines if line.endswith("\n")]
        return found

    def started(self, job, start=0, restart=0):
        def all_ranks():
            found = self.events(job, start, restart)
            return found if len(found) == RANKS and all(found.values()) else None
        return until(f"start {start + 1} of job {job} with {RANKS} processes", all_ranks)

    def field(self, job, name):
        return re.search(rf"(?:^|\s){name}=(\S+)", run("scontrol", "show", "job", str(job)))[1]

    def ended(self, job, state):
        """Waits for the end of a job, and checks how it ended."""
        over = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")
        until(f"the end of job {job}", lambda: self.field(job, "JobState") in over)
        expect(self.field(job, "JobState"), state, f"the state of job {job}")

    def log(self, job, name="ddk"):
        return (self.work / f"{name}-{job}.log").read_text()

    def saved(self, job):
        """Checks that each process received SIGTERM once and was given the time to save."""
        expect(sorted(self.events(job)), list(range(RANKS)), f"the ranks of job {job}")
        for rank, events in self.events(job).items():
            expect([event["event"] for event in events], ["start", "TERM", "saved"], f"rank {rank} of job {job}")

    def resumed(self, job):
        """Waits for the second start, which ends the run. Checks that it was the only one."""
        self.started(job, start=1)
        self.ended(job, "COMPLETED")
        expect(self.field(job, "Restarts"), "1", f"the number of restarts of job {job}")
        if "the run is done" not in self.log(job):
            raise Failed(f"the log of job {job} does not say that the run is done")


def check_time_limit(cluster):
    job = cluster.submit("train.sbatch", f"--time={LIMIT_MINUTES}", arguments=["--set", "run.max_steps=9"],
                         STAND_IN="wait")
    starts = {rank: events[0] for rank, events in cluster.started(job).items()}
    masters = set()
    for rank, start in starts.items():
        variables = start["variables"]
        expect(variables["RANK"], str(rank), "RANK")
        expect(variables["LOCAL_RANK"], str(rank % 2), "LOCAL_RANK")
        expect(variables["WORLD_SIZE"], str(RANKS), "WORLD_SIZE")
        expect(variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"], "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
        expect(variables["TORCHELASTIC_RUN_ID"], str(job), "TORCHELASTIC_RUN_ID")
        expect(start["node"], NODES[rank // 2], f"the node of rank {rank}")
        expect(start["arguments"], ["train", "run.toml", "--set", "run.max_steps=9"], "the arguments of ddk")
        masters.add((variables["MASTER_ADDR"], variables["MASTER_PORT"]))
    expect({address for address, _ in masters}, {"n1"}, "MASTER_ADDR")
    expect(len(masters), 1, "the number of values of MASTER_PORT")
    until("the job's return to the queue", lambda: "returns to the queue" in cluster.log(job))
    cluster.saved(job)
    seconds = max(event["time"] for events in cluster.events(job).values() for event in events) \
        - min(start["time"] for start in starts.values())
    if seconds >= 60 * LIMIT_MINUTES:
        raise Failed(f"the last process saved {seconds:.0f} s after its start, later than the limit")
    cluster.resumed(job)
    for node in NODES[:2]:
        if not (cluster.work / "logs" / f"ddk-{job}-{node}.log").exists():
            raise Failed(f"node {node} has no log")
    return f"{RANKS} processes on 2 nodes saved {seconds:.0f} s after their start, and the job resumed"


def check_cancel(cluster):
    job = cluster.submit("train.sbatch", STAND_IN="wait")
    cluster.started(job)
    run("scancel", str(job))
    cluster.ended(job, "CANCELLED")
    cluster.saved(job)
    expect(cluster.field(job, "Restarts"), "0", "the number of restarts")
    return "each process received one SIGTERM, and the job did not return to the queue"


def check_stop(cluster):
    job = cluster.submit("train.sbatch", STAND_IN="wait")
    cluster.started(job)
    run("scancel", "--signal=TERM", str(job))
    cluster.ended(job, "FAILED")
    cluster.saved(job)
    expect(cluster.field(job, "Restarts"), "0", "the number of restarts")
    return "scancel --signal=TERM reaches each process once, and the job did not return to the queue"


def check_preemption(cluster):
    for partition in ("grace", "nograce"):
        job = cluster.submit("train.sbatch", f"--partition={partition}", STAND_IN="wait")
        cluster.started(job)
        cluster.urgent()
        cluster.resumed(job)
        cluster.saved(job)
    return "with and without a grace time, each process received one SIGTERM, and the job resumed"


def check_failure(cluster):
    job = cluster.submit("train.sbatch", STAND_IN="fail", RESTARTS="1")
    cluster.ended(job, "FAILED")
    # torchrun may end the others of the second start before they record it.
    expect([bool(cluster.events(job, restart=restart)) for restart in (0, 1, 2)], [True, True, False],
           "torchrun's starts")
    expect(cluster.field(job, "Restarts"), "0", "the number of restarts")
    return "torchrun restarted the processes once, and the job failed"


def check_teacher(cluster):
    teacher = cluster.submit("teacher.sbatch", GPUS="1", MODEL="teacher")
    # A file that a killed job left behind.
    (cluster.work / "teachers").mkdir(exist_ok=True)
    (cluster.work / "teachers" / "1.url").write_text("http://n2:1\n")
    job = cluster.submit("train.sbatch", STAND_IN="end", TEACHERS="1")
    start = cluster.started(job)[0][0]
    cluster.ended(job, "COMPLETED")
    address = cluster.work / "teachers" / f"{teacher}.url"
    servers = json.loads(start["variables"]["DDK__TEACHER__SERVERS"])
    expect(servers, [address.read_text().strip()], "DDK__TEACHER__SERVERS")
    run("scancel", str(teacher))
    cluster.ended(teacher, "CANCELLED")
    until("the removal of the teacher's address", lambda: not address.exists())
    return f"the run received teacher.servers = {servers}, and the address disappeared with the teacher"


CHECKS = {
    "Slurm, time limit": check_time_limit,
    "Slurm, scancel": check_cancel,
    "Slurm, scancel --signal": check_stop,
    "Slurm, preemption": check_preemption,
    "Slurm, failure": check_failure,
    "Slurm, teacher": check_teacher,
}


def main():
    cluster = Cluster(pathlib.Path(sys.argv[1]), sys.argv[2])
    failures = 0
    with concurrent.futures.ThreadPoolExecutor(len(CHECKS)) as pool:
        running = {pool.submit(work, cluster): name for name, work in CHECKS.items()}
        for done in concurrent.futures.as_completed(running):
            try:
                print(f"ok {running[done]}: {done.result()}", flush=True)
            except (Failed, OSError, subprocess.TimeoutExpired) as error:
                failures += 1
                print(f"FAILED {running[done]}: {error}", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
