#!/usr/bin/env python3
"""Checks worlds/report on archives of made-up runs, which the real `ddk compare` compares.

    report.py DDK    DDK: the program, as an absolute path"""

import importlib
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DDK = sys.argv.pop()
METHODS = ["kd", "ddk-equal", "ddk", "excess"]
DOMAINS = ["c", "cpp", "data", "javascript", "perl", "prose", "python", "rust"]
SHARES = {"rust": 0.5, "cpp": 0.2, "python": 0.12, "c": 0.07, "prose": 0.05, "javascript": 0.03, "perl": 0.02}
SHARES["data"] = 0.01
TEACHER = 10.0
# By method: the gap of every domain but the worst, and that of javascript.
GAPS = {"kd": (1.0, 1.8), "ddk-equal": (0.9, 1.7), "ddk": (0.95, 1.65), "excess": (0.9, 1.5)}
# By seed, in nats: what `excess` deviates from these gaps. Mean 0, deviation 0.01 sqrt(2.5).
DEVIATIONS = [-0.02, -0.01, 0.0, 0.01, 0.02]
# The 97.5% quantile of Student's t with four degrees of freedom.
T = 2.776445105197799


class World:
    """A folder with what worlds/report reads of the repository, and `ddk compare`'s configurations."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        shutil.copytree(REPOSITORY / "worlds", self.root / "worlds", ignore=shutil.ignore_patterns("results"))
        (self.root / "docs").mkdir()
        page = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
        (self.root / "docs/results.md").write_text(page, encoding="utf-8")

    def ddk(self, *arguments):
        done = subprocess.run([DDK, *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    def settings(self, layers):
        """The arguments that name the configuration of world 2."""
        return ["worlds/smollm2.toml"] + (["worlds/smollm2-8.toml"] if layers == 8 else [])

    def run(self, layers, method, seed, machine=True):
        """Archives a run."""
        folder = self.root / f"worlds/results/smollm2-{layers}/{method}/seed-{seed}"
        folder.mkdir(parents=True)
        rest, worst = GAPS[method]
        deviation = DEVIATIONS[seed] if method == "excess" else 0.0
        domains = {}
        for name in DOMAINS:
            gap = (worst if name == "javascript" else rest) + deviation
            domains[name] = {
                "student_perplexity_before": 5000.0,
                "student_perplexity_after": TEACHER * math.exp(gap),
                "teacher_perplexity": TEACHER,
                "ratio_before": 500.0,
                "ratio_after": math.exp(gap),
                "gap_before": math.log(500.0),
                "gap_after": gap,
                "token_share": SHARES[name] if method == "kd" else 0.125,
            }
        ones = "teacher_busy_seconds student_busy_seconds evaluation_seconds boundary_seconds save_stall_seconds "
        ones += "paused_seconds overlap data_wait_share tokens_per_second teacher_flops teacher_flops_saved "
        ones += "teacher_head_flops student_flops evaluation_flops mixture_flops mixture_flops_share "
        ones += "mixture_seconds_share distill_seconds"
        summary = {"domains": domains, "steps": 120, "intervals": 6, "tokens": 61440, "seconds": 300.0}
        summary |= dict.fromkeys(ones.split(), 1.0)
        summary |= {"peak_rss_bytes": 1, "stop_reason": "max_steps", "exported": "last", "exported_step": 120}
        even = dict.fromkeys(DOMAINS, 0.125)
        line = {"interval": 0, "step": 0, "policy": "natural" if method == "kd" else "equal"}
        line |= {"weights": SHARES if method == "kd" else even, "target": even, "evaluated_at_step": 0}
        for key, value in [("student_perplexity", 5000.0), ("teacher_perplexity", TEACHER), ("ratio", 500.0)]:
            line[key] = dict.fromkeys(DOMAINS, value)
        line["gap"] = dict.fromkeys(DOMAINS, math.log(500.0))
        inputs = dict.fromkeys(["teacher", "teacher_head", "teacher_config", "student", "student_config"], "0" * 64)
        inputs |= {"tokenizer": "0" * 64, "corpus": [[name, "0" * 64] for name in DOMAINS]}
        inputs |= {"vocabulary": 49152, "sequence_length": 128}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        (folder / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
        (folder / "mixture.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        if machine:  # else: the machine is not recorded yet
            of = {"date": f"2026-12-0{seed + 1}", "cpu": "Made Up 9000", "processors": 2}
            (folder / "machine.json").write_text(json.dumps(of), encoding="utf-8")

    def config(self, layers, method):
        """The settings of a method's run with seed 0."""
        own = [f"method={method}", 'run.name="seed-0"', f'run.output_dir="runs/world-smollm2-{layers}/{method}"']
        return self.ddk("config", "show", *self.settings(layers), *(f"--set={key}" for key in own)).stdout

    def complete(self, layers):
        """Archives all runs of a comparison and compares them."""
        for method in METHODS:
            config = self.config(layers, method)
            for seed in range(5):
                self.run(layers, method, seed)
                # The first seed in the file is that of [run].
                own = config.replace('"seed-0"', f'"seed-{seed}"').replace("seed = 0\n", f"seed = {seed}\n", 1)
                file = self.root / f"worlds/results/smollm2-{layers}/{method}/seed-{seed}/config.toml"
                file.write_text(own, encoding="utf-8")
        name = f"smollm2-{layers}"
        arguments = ["--methods", ",".join(METHODS), "--seeds", "5", "--archive", f"worlds/results/{name}"]
        said = self.ddk("compare", *self.settings(layers), *arguments, "--out", f"docs/results/world-{name}").stderr
        assert "20 runs in" in said and "20 of them finished" in said, said

    def report(self, *arguments):
        """Runs worlds/report, and returns its exit code, what it said, and the page."""
        command = [sys.executable, self.root / "worlds/report", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr, (self.root / "docs/results.md").read_text(encoding="utf-8")


def load(path):
    """A module of the repository's worlds/."""
    sys.path.insert(0, str(REPOSITORY / "worlds"))
    sys.dont_write_bytecode = True
    return importlib.import_module(path)


class Report(unittest.TestCase):
    def setUp(self):
        self.world = World()
        self.addCleanup(self.world.folder.cleanup)

    def current(self):
        """The page, which a new report changes once."""
        code, said, page = self.world.report()
        self.assertEqual((code, said), (0, ""))
        self.assertEqual(self.world.report("--check"), (0, "", page))
        return page

    def test_an_incomplete_world_has_means_of_complete_seeds_and_no_claims(self):
        self.current()
        for method in METHODS:
            self.world.run(14, method, 0)
        self.world.run(14, "kd", 1, machine=False)
        code, said, before = self.world.report("--check")
        self.assertEqual(code, 1)
        self.assertIn("docs/results.md is not up to date: run 'worlds/report'", said)
        page = self.current()
        self.assertNotEqual(page, before)
        first = page.split("\n\n")[2]
        self.assertTrue(first.startswith("**Incomplete: 5 of 200 runs are done.** There is no claim"), first)
        for expected in [
            "| 2 | `smollm2-14` | 5 of 20 runs are done |  |  |  |",
            "They took 25 min, on Made Up 9000 (2 processors), 2026-12-01 (1 without a record of the machine).",
            "Finished runs: seed 0: `kd`, `ddk-equal`, `ddk`, `excess`; seed 1: `kd`.",
            "Means over seed 0 alone",
            # The mean over domains of 7 gaps of 1.0 and one of 1.8; ln 10 and the weighted gaps; 10 times the exp.
            "| `kd` | 1.100 | 1.800 (javascript) | 1.100 | 3.327 | 31.35 | 300 |",
            "| teacher | 0.000 | 0.000 | 0.000 | 2.303 | 10.00 |  |",
            "| `kd` | 50.0% | 20.0% | 12.0% | 7.0% | 5.0% | 3.0% | 2.0% | 1.0% | 61,440 |",
        ]:
            self.assertIn(expected, page)
        for never in ["excess < kd", "Paired by seed: mean", "| yes |"]:
            self.assertNotIn(never, page)

    def test_a_complete_world_has_the_claims_of_compare_and_a_change_of_a_run_is_an_error(self):
        self.world.complete(14)
        page = self.current()
        half = T * 0.01 * math.sqrt(2.5) / math.sqrt(5)
        for claim, mean, p in [
            ("mean gap: excess < kd", -0.125, "0.0001"),
            ("worst domain's gap: excess < kd", -0.3, "< 0.0001"),
            ("worst domain's gap: excess < ddk-equal", -0.2, "< 0.0001"),
            # scipy.stats.t.cdf(-0.035 / (0.01 / sqrt(2)), 4) * 2, the largest of the four.
            ("mean gap: excess < ddk-equal + 0.01", -0.025, "0.0078"),
        ]:
            interval = f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
            self.assertIn(f"| 2 | `smollm2-14` | {claim} | {interval} | {p} | yes |", page)
        self.assertIn("| `excess` | 0.975 ± 0.016 | 1.500 ± 0.016 (javascript) | 0.975 ± 0.016 |", page)
        took = "20 of 20 runs are done. They took 1 h 40 min, on Made Up 9000 (2 processors), 2026-12-01 to 2026-12-05."
        self.assertIn(took, page)
        self.assertIn("ddk compare worlds/smollm2.toml --methods kd,ddk-equal,ddk,excess --seeds 5", page)
        for link in re.findall(r"\((results/world-[^)]*)\)", page):
            self.assertTrue((self.world.root / "docs" / link).exists(), link)
        # World 2 is open until its other student is compared too.
        self.assertIn("**Incomplete: 20 of 200 runs are done.**", page)
        self.assertNotIn("All four claims hold", page)

        file = self.world.root / "docs/results/world-smollm2-14/compare.json"
        compared = file.read_text(encoding="utf-8")
        forged = json.loads(compared)
        forged["groups"][0]["primary"][3]["difference"]["interval"][1] = 0.011
        file.write_text(json.dumps(forged), encoding="utf-8")
        code, said, _ = self.world.report("--check")
        self.assertEqual(code, 1)
        self.assertIn("the claim about mean_gap and ddk-equal holds, but its interval exceeds 0.01", said)
        file.write_text(compared, encoding="utf-8")

        changed = self.world.root / "worlds/results/smollm2-14/ddk/seed-3/summary.json"
        summary = json.loads(changed.read_text(encoding="utf-8"))
        summary["domains"]["perl"]["student_perplexity_after"] *= 1.001
        changed.write_text(json.dumps(summary), encoding="utf-8")
        code, said, _ = self.world.report("--check")
        self.assertEqual(code, 1)
        self.assertIn("does not fit worlds/results/smollm2-14 (ddk, seed 3: mean_gap is", said)
        self.assertIn("run 'worlds/run smollm2-14'", said)

    def test_the_first_paragraph_says_whether_the_criterion_is_met(self):
        archive, page = load("reporting.archive"), load("reporting.page")

        def verdict(holds):
            """holds: one letter per comparison: y, n, or - for one that is not complete."""
            worlds = []
            for protocol, letter in zip(archive.PROTOCOL, holds, strict=True):
                compared = {"groups": [{"primary": [{"holds": True}, {"holds": letter == "y"}]}]}
                worlds.append(archive.World(protocol, {}, None if letter == "-" else compared, None))
            return "\n".join(page.verdict(worlds))

        # The order: 1, 2 with 14 layers, 2 with 8 layers, 3, 4, 5.
        for holds, start, middle in [
            ("nyyyyn", "**Steering by the gap (`excess`) meets", "in 3 of 5 worlds, world 2 among them.** All four"),
            ("yynyyy", "**Steering by the gap (`excess`) does not meet", "in 4 of 5 worlds, world 2 not among them.**"),
            ("nyynny", "**Steering by the gap (`excess`) does not meet", "in 2 of 5 worlds, world 2 among them.**"),
            ("nnnnnn", "**Steering by the gap (`excess`) does not meet", "does not hold in worlds 1, 2, 3, 4 and 5."),
            ("-n----", "**Incomplete: 0 of 200", "The criterion is not met, whatever the other worlds show."),
            ("nyynn-", "**Incomplete: 0 of 200", "The criterion is not met, whatever the other worlds show."),
            ("-yyyy-", "**Incomplete: 0 of 200", "The criterion is met, whatever the other worlds show."),
            ("-y-yyy", "**Incomplete: 0 of 200", "All four claims hold in worlds 3, 4 and 5. Success means three"),
        ]:
            text = verdict(holds)
            self.assertTrue(text.startswith(start), text)
            self.assertIn(middle, text)
            self.assertEqual("whatever" in text, "whatever" in middle, text)

    def test_the_evaluation_has_standard_errors_over_passages(self):
        out = self.world.root / "lm-eval"
        (out / "tasks").mkdir(parents=True)
        bit = math.log(2)
        for domain in ["c", "perl"]:
            (out / "tasks" / f"world_bits_{domain}.yaml").touch()
            for model in ["teacher", "start", *(f"{method}-{seed}" for method in METHODS for seed in range(2))]:
                folder = out / model / "org"
                folder.mkdir(parents=True, exist_ok=True)
                more = 1 if model == "excess-1" else 0
                # Two passages of 8 bytes with 1 and 2 bits per byte; in one model one bit more.
                sizes = [(1, 16 + 8 * more), (0, 8 + 8 * more)]
                bits = [{"doc_id": number, "bits_per_byte": [-size * bit, 8]} for number, size in sizes]
                cloze = [{"doc_id": number, "acc_norm": float(number == 0)} for number in range(4)]
                for task, records in [("bits", bits), ("cloze", cloze)]:
                    file = folder / f"samples_world_{task}_{domain}_2026.jsonl"
                    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        file = self.world.root / "worlds/results/smollm2-14/evaluation.json"
        file.parent.mkdir(parents=True)
        self.world.run(14, "kd", 0)
        command = [sys.executable, self.world.root / "worlds/evaluation/table.py", out, file, "0", "1"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        evaluation = json.loads(file.read_text(encoding="utf-8"))
        self.assertEqual(evaluation["models"]["excess"][1]["perl"]["nats"], [16 * bit, 24 * bit])
        self.assertEqual(evaluation["models"]["kd"][0]["c"]["right"], [1, 0, 0, 0])
        for expected in [
            "2 held-out passages per domain, seeds: 0, 1.",
            # Deviation 0.707 of two passages; the mean of two domains has the error of one over the root of two.
            "| kd | 1.500 ± 0.500 | 1.500 ± 0.500 | 1.500 ± 0.354 |  | +0.000 ± 0.000 |",
            "| excess | 2.000 ± 0.500 | 2.000 ± 0.500 | 2.000 ± 0.354 | +0.500 ± 0.000 | +0.500 ± 0.000 |",
            "| student before | 25.0 ± 25.0 | 25.0 ± 25.0 | 25.0 ± 17.7 |  |  |",
        ]:
            self.assertIn(expected, said)
if __name__ == "__main__":
    unittest.main()
