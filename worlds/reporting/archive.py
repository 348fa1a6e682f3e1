"""Reads what the worlds left: the archived runs, the comparison of a complete world, the harness's numbers."""

import dataclasses
import json
import math
import pathlib
import statistics

METHODS = ["kd", "ddk-equal", "ddk", "excess"]
# The names of the measures in compare.json, in the order of its tables.
MEASURES = ["mean_gap", "worst_gap", "clipped_gap", "token_weighted_loss", "mean_perplexity"]
# The primary comparisons: the measure, the method that `excess` is compared with, the margin in nats.
CLAIMS = [("mean_gap", "kd", 0), ("worst_gap", "kd", 0), ("worst_gap", "ddk-equal", 0), ("mean_gap", "ddk-equal", 0.01)]


class Problem(Exception):
    """What is wrong with the files, and what to do."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What worlds/README.md says about a comparison: its world's number, its name, what it is, its seeds."""

    number: int
    name: str
    title: str
    seeds: int


PROTOCOL = [
    Protocol(1, "demo", "the demo's text and models", 10),
    Protocol(2, "smollm2-14", "SmolLM2 and a student with 14 of its 30 layers", 5),
    Protocol(2, "smollm2-8", "SmolLM2 and a student with 8 of its 30 layers", 5),
    Protocol(3, "one-large", "one large domain", 10),
    Protocol(4, "uneven", "an unevenly pretrained student", 10),
    Protocol(5, "small-repeated", "a small domain that repeats", 10),
]


def read(path):
    """The contents of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Problem(f"{path} is not valid JSON ({error}): remove it and repeat what wrote it") from error


def number(value):
    """A number of a file. What is not finite is null there."""
    return math.nan if value is None else value


@dataclasses.dataclass(frozen=True)
class Run:
    """An archived run: perplexities by domain, shares of the tokens, time, machine."""

    before: dict
    after: dict
    teacher: dict
    drawn: dict
    tokens: int
    seconds: float
    # The shares of the corpus, if the run draws the natural mixture.
    natural: dict | None
    machine: dict | None

    @classmethod
    def read(cls, folder):
        """Reads METHOD/seed-N of an archive."""
        summary = read(folder / "summary.json")

        def by_domain(key):
            return {name: number(domain[key]) for name, domain in sorted(summary["domains"].items())}

        first = json.loads((folder / "mixture.jsonl").read_text(encoding="utf-8").split("\n", 1)[0])
        machine = folder / "machine.json"
        return cls(
            before=by_domain("student_perplexity_before"),
            after=by_domain("student_perplexity_after"),
            teacher=by_domain("teacher_perplexity"),
            drawn=by_domain("token_share"),
            tokens=summary["tokens"],
            seconds=summary["seconds"],
            natural=first["weights"] if first["policy"] == "natural" else None,
            machine=read(machine) if machine.exists() else None,
        )

    def gaps(self, perplexity=None):
        """The gap of each domain after the run, or that of other perplexities."""
        return {name: math.log(value / self.teacher[name]) for name, value in (perplexity or self.after).items()}

    def measures(self, natural, perplexity=None):
        """All measures by name, after the run or of other perplexities. natural: the shares of the corpus."""
        perplexity = perplexity or self.after
        gaps = list(self.gaps(perplexity).values())
        return {
            "mean_gap": statistics.fmean(gaps),
            "worst_gap": math.nan if any(map(math.isnan, gaps)) else max(gaps),
            "clipped_gap": statistics.fmean(max(gap, 0.0) if gap == gap else gap for gap in gaps),
            "token_weighted_loss": sum(natural[name] * math.log(value) for name, value in perplexity.items()),
            "mean_perplexity": statistics.fmean(perplexity.values()),
        }


@dataclasses.dataclass(frozen=True)
class World:
    """What a comparison of the protocol left so far."""

    protocol: Protocol
    # By method and seed.
    runs: dict
    # compare.json, once all runs are done and compared.
    compared: dict | None
    evaluation: dict | None
    # The names of the comparison's figures.
    figures: frozenset = frozenset()

    @property
    def planned(self):
        """The number of its runs."""
        return len(METHODS) * self.protocol.seeds

    @property
    def seeds(self):
        """The seeds whose runs are all done. Only they compare like with like."""
        return [seed for seed in range(self.protocol.seeds) if all((method, seed) in self.runs for method in METHODS)]

    @property
    def holds(self):
        """Whether all of its claims hold; None before all of its runs are compared."""
        return self.compared and all(claim["holds"] for claim in self.compared["groups"][0]["primary"])

    def of_method(self, method):
        """A method's runs with the complete seeds."""
        return [self.runs[method, seed] for seed in self.seeds]

    @property
    def natural(self):
        """The shares of the corpus."""
        return self.of_method("kd")[0].natural

    def values(self, method):
        """A method's values of each measure, one per complete seed."""
        measured = [run.measures(self.natural) for run in self.of_method(method)]
        return {name: [of_run[name] for of_run in measured] for name in MEASURES}


def world(root, protocol):
    """Reads what there is of a comparison.

    Raises Problem if its comparison and its runs do not fit together."""
    archive = root / "worlds/results" / protocol.name
    runs = {
        (method, seed): Run.read(archive / method / f"seed-{seed}")
        for method in METHODS
        for seed in range(protocol.seeds)
        if (archive / method / f"seed-{seed}" / "summary.json").exists()
    }
    file, evaluation = comparison(protocol, root), archive / "evaluation.json"
    found = World(protocol, runs, None, read(evaluation) if evaluation.exists() else None)
    if len(runs) < found.planned or not file.exists():
        return found
    compared = read(file)
    if wrong := mismatch(found, compared):
        raise Problem(f"{file} does not fit worlds/results/{protocol.name} ({wrong}): run 'worlds/run {protocol.name}'")
    figures = frozenset(path.stem for path in file.parent.glob("figures/*.svg"))
    return dataclasses.replace(found, compared=compared, figures=figures)


def comparison(protocol, root=pathlib.Path()):
    """Where a complete world's comparison is."""
    return root / "docs/results" / f"world-{protocol.name}" / "compare.json"


def mismatch(found, compared):
    """What in a comparison is not the protocol's, or not what the runs say; None if all of it is right. The measures
    and the mean differences are computed again, from the perplexities."""
    seeds = list(range(found.protocol.seeds))
    if compared["seeds"] != seeds:
        return f"its seeds are {compared['seeds']}, expected {seeds}"
    group = compared["groups"][0]
    methods = {method["method"]: method for method in group["methods"]}
    if list(methods) != METHODS:
        return f"its methods are {', '.join(methods)}, expected {', '.join(METHODS)}"
    claims = [(claim["measure"], claim["other"], claim["margin"]) for claim in group["primary"]]
    if claims != CLAIMS or any(claim["method"] != "excess" for claim in group["primary"]):
        return "its claims are not those of the protocol"
    for name, method in methods.items():
        for measure, ours in found.values(name).items():
            theirs = [number(value) for value in method[measure]["values"]]
            for seed, pair in enumerate(zip(ours, theirs, strict=True)):
                if not same(*pair):
                    return f"{name}, seed {seed}: {measure} is {pair[1]}, but {pair[0]} by the run's perplexities"
    for claim, (measure, other, margin) in zip(group["primary"], CLAIMS, strict=True):
        pairs = zip(found.values("excess")[measure], found.values(other)[measure], strict=True)
        mean = statistics.fmean(ours - others for ours, others in pairs)
        theirs = number(claim["difference"]["mean"])
        if not same(mean, theirs):
            return f"the difference from {other} in {measure} is {theirs}, but {mean} by the runs"
        # Whatever its p-value: a claim that holds has the whole interval on the claimed side.
        if claim["holds"] and not number(claim["difference"]["interval"][1]) <= margin:
            return f"the claim about {measure} and {other} holds, but its interval exceeds {margin}"
    return None


def same(one, other):
    """Whether two numbers are the same but for rounding."""
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))
