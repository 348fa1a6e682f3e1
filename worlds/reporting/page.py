"""The generated parts of docs/results.md, as Markdown."""

import re
import statistics

from evaluation import table

from . import archive

NUMBERS = sorted({protocol.number for protocol in archive.PROTOCOL})
# Success: this many worlds, and this world among them.
ENOUGH, REQUIRED = 3, 2
TITLES = {
    "mean_gap": "mean gap",
    "worst_gap": "worst domain's gap",
    "clipped_gap": "clipped gap",
    "token_weighted_loss": "token-weighted loss",
    "mean_perplexity": "mean perplexity",
}
FIGURES = {
    "gaps": "Gap of each domain, over the tokens trained on",
    "weights": "Weight of each domain in the mixture, over the tokens trained on",
}


def replaced(text, parts):
    """A text with new generated parts, each between two comments with its name."""
    for name, lines in parts.items():
        begin, end = f"<!-- worlds/report: {name} -->\n", f"<!-- end of {name} -->\n"
        pattern = re.compile(f"(?<={re.escape(begin)}).*(?={re.escape(end)})", re.DOTALL)
        text, count = pattern.subn(lambda _, lines=lines: "".join(f"{line}\n" for line in ["", *lines, ""]), text)
        if count != 1:
            raise archive.Problem(f"docs/results.md needs the lines '{begin.strip()}' and '{end.strip()}' once")
    return text


def joined(words):
    """Words as a list in a sentence."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def of_worlds(numbers):
    """Worlds by their numbers, in a sentence."""
    return f"world{'s' if len(numbers) > 1 else ''} {joined(numbers)}"


def status(worlds):
    """Whether a world counts, by its number; None if that is open. World 2 counts if both of its comparisons hold."""
    found = {}
    for number in NUMBERS:
        holds = [world.holds for world in worlds if world.protocol.number == number]
        found[number] = False if False in holds else None if None in holds else True
    return found


def verdict(worlds):
    """The first paragraph."""
    of = status(worlds)
    won, lost = ([number for number in NUMBERS if of[number] is value] for value in (True, False))
    done, planned = sum(len(world.runs) for world in worlds), sum(world.planned for world in worlds)
    met = len(won) >= ENOUGH and REQUIRED in won
    failed = len(NUMBERS) - len(lost) < ENOUGH or REQUIRED in lost
    lines = []
    if None not in of.values():
        among = f", world {REQUIRED} {'' if REQUIRED in won else 'not '}among them" if won else ""
        lines.append(
            f"**Steering by the gap (`excess`) {'meets' if met else 'does not meet'} the protocol's criterion: all "
            f"four claims hold in {len(won)} of {len(NUMBERS)} worlds{among}.**"
        )
    else:
        lines.append(f"**Incomplete: {done} of {planned} runs are done.**")
        lines.append("There is no claim about a world before all of its runs are done.")
    if won:
        lines.append(f"All four claims hold in {of_worlds(won)}.")
    if lost:
        lines.append(f"At least one claim does not hold in {of_worlds(lost)}.")
    lines.append(f"Success means three worlds or more, world {REQUIRED} among them.")
    if None in of.values() and (met or failed):
        lines.append(f"The criterion is {'met' if met else 'not met'}, whatever the other worlds show.")
    return [" ".join(lines)]


def row(*cells):
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def header(first, *names):
    """The first two lines of a table: a column of words, then columns of numbers."""
    return [row(first, *names), "|---" + "|---:" * len(names) + "|"]


def decimals(value):
    """How many to show: fewer for larger values."""
    return 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1


def shown(values, spread=False):
    """A mean, with the standard deviation over seeds if that is wanted."""
    mean = statistics.fmean(values)
    text = f"{mean:.{decimals(mean)}f}"
    return f"{text} ± {statistics.stdev(values):.{decimals(mean)}f}" if spread else text


def paired(difference):
    """A difference with its interval, as compare.json has it."""
    low, high = map(archive.number, difference["interval"])
    return f"{archive.number(difference['mean']):+.3f} [{low:+.3f}, {high:+.3f}]"


def claim_rows(world):
    """The rows of a world in the table of the primary comparisons."""
    first = [str(world.protocol.number), f"`{world.protocol.name}`"]
    if not world.compared:
        missing = f"{len(world.runs)} of {world.planned} runs are done"
        return [row(*first, missing, "", "", "")]
    rows = []
    for claim in world.compared["groups"][0]["primary"]:
        margin = f" + {claim['margin']}" if claim["margin"] else ""
        text = f"{TITLES[claim['measure']]}: {claim['method']} < {claim['other']}{margin}"
        p = "< 0.0001" if claim["p_holm"] < 0.0001 else f"{claim['p_holm']:.4f}"
        rows.append(row(*first, text, paired(claim["difference"]), p, "yes" if claim["holds"] else "**no**"))
    return rows


def measures(world):
    """A world's table of all measures: before, after, and the teacher."""
    spread = bool(world.compared)
    lines = header("method", *(TITLES[name] for name in archive.MEASURES), "seconds per run")

    def worst(gaps):
        """The domain with the largest mean gap."""
        means = {name: statistics.fmean(gap[name] for gap in gaps) for name in gaps[0]}
        return max(means, key=means.get)

    def add(name, runs, perplexity, spread, seconds):
        of_runs = [run.measures(world.natural, perplexity(run)) for run in runs]
        cells = [shown([of_run[measure] for of_run in of_runs], spread) for measure in archive.MEASURES]
        if name != "teacher":
            cells[1] += f" ({worst([run.gaps(perplexity(run)) for run in runs])})"
        lines.append(row(name, *cells, seconds))

    add("student before", world.of_method("kd"), lambda run: run.before, False, "")
    for method in archive.METHODS:
        runs = world.of_method(method)
        add(f"`{method}`", runs, lambda run: run.after, spread, f"{statistics.fmean(run.seconds for run in runs):.0f}")
    add("teacher", world.of_method("kd"), lambda run: run.teacher, False, "")
    return lines


def differences(world):
    """The differences between the methods that steer and the others."""
    methods = {method["method"]: method["differences"] for method in world.compared["groups"][0]["methods"]}
    pairs = [("excess", "kd"), ("excess", "ddk-equal"), ("excess", "ddk"), ("ddk", "kd"), ("ddk", "ddk-equal")]
    lines = header("difference", *(TITLES[name] for name in archive.MEASURES))
    for one, other in pairs:
        cells = [paired(methods[one][other][measure]) for measure in archive.MEASURES]
        lines.append(row(f"`{one}` - `{other}`", *cells))
    return lines


def tokens(world):
    """Each domain's share of the tokens that a method drew."""
    domains = list(world.natural)
    lines = header("method", *domains, "tokens per run")
    for method in archive.METHODS:
        runs = world.of_method(method)
        shares = [f"{100 * statistics.fmean(run.drawn[name] for run in runs):.1f}%" for name in domains]
        lines.append(row(f"`{method}`", *shares, f"{statistics.fmean(run.tokens for run in runs):,.0f}"))
    return lines


def duration(seconds):
    """A time in hours and minutes."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def state(world):
    """Which runs are done, when they ran, where, and how long they took."""
    total = duration(sum(run.seconds for run in world.runs.values()))
    known = [run.machine for run in world.runs.values() if run.machine]
    machines = sorted({f"{machine['cpu']} ({machine['processors']} processors)" for machine in known})
    dates = sorted({machine["date"] for machine in known})
    text = f"{len(world.runs)} of {world.planned} runs are done. They took {total}"
    if known:
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        text += f", on {joined(machines)}, {when}"
    if unknown := len(world.runs) - len(known):
        text += f" ({unknown} without a record of the machine)"
    lines = [text + "."]
    if len(world.runs) < world.planned:
        parts = []
        for seed in sorted({seed for _, seed in world.runs}):
            methods = [f"`{method}`" for method in archive.METHODS if (method, seed) in world.runs]
            parts.append(f"seed {seed}: {', '.join(methods)}")
        lines.append(f"Finished runs: {'; '.join(parts)}.")
    elif not world.compared:
        lines.append(f"`worlds/run {world.protocol.name}` has not compared them yet.")
    return " ".join(lines)


def section(world):
    """The section of a world."""
    protocol = world.protocol
    lines = [f"### World {protocol.number}, `{protocol.name}`: {protocol.title}", ""]
    if not world.runs:
        return [*lines, f"0 of {world.planned} runs are done. `worlds/run {protocol.name}` continues.", ""]
    lines += [state(world), ""]
    if not world.seeds:
        return [*lines, "No seed has all of its runs yet, so there are no means.", ""]
    folder = archive.comparison(protocol).parent.relative_to("docs")
    if world.compared:
        what = "± standard deviation over seeds. Gaps and losses are in nats per token."
    else:
        which = f"seed{'s' if len(world.seeds) > 1 else ''} {joined(world.seeds)}"
        what = f"over {which} alone, whose runs are all done. No difference is tested."
    lines += [f"Means {what}", "", *measures(world), ""]
    if world.compared:
        lines += ["Paired by seed: mean and 95% interval, not corrected for their number.", ""]
        lines += [*differences(world), ""]
    lines += ["Tokens drawn:", "", *tokens(world), ""]
    if world.compared:
        lines += [f"[{folder}/compare.md]({folder}/compare.md) has all tables, by domain too. Command:", ""]
        lines += ["```sh", world.compared["command"], "```", ""]
        for name, about in FIGURES.items():
            if name in world.figures:
                lines += [f"![{about}]({folder}/figures/{name}.svg)", "", f"*{about}.* Seed 0.", ""]
    if world.evaluation:
        lines += ["lm-evaluation-harness on held-out text (`worlds/evaluate`):", ""]
        lines += [*table.tables(world.evaluation), ""]
    return lines


def tables(worlds):
    """The tables of all worlds."""
    how = (
        "Differences in nats per token, paired by seed: mean and 95% interval. A claim holds if its p-value is at "
        "most 0.05 after Holm's correction for the four claims of a comparison."
    )
    lines = ["## Primary comparisons", "", how, ""]
    lines += [row("world", "comparison", "claim", "difference", "p (Holm)", "holds"), "|---|---|---|---:|---:|---|"]
    for world in worlds:
        lines += claim_rows(world)
    lines += ["", "## World by world", ""]
    for world in worlds:
        lines += section(world)
    return lines[:-1]
