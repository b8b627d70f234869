"""Tells in tables what `quorate simulate` found: tables.py RESULTS. Needs nothing but Python."""

import csv
import json
import statistics
import sys
from pathlib import Path

CLASSES = ("critical", "standard", "sheddable", "batch")
VARIANTS = (
    ("", "as described"),
    ("-never", "fixed limits under which nothing is ever overloaded"),
    ("-seed-2", "another seed"),
    ("-seed-3", "a third seed"),
    ("-in-turn", "small accounts in class batch too"),
    ("-sound", "a backend with which nothing is amiss"),
    ("-asked-0.5", "asked for 0.5 of the capacity"),
    ("-asked-0.7", "asked for 0.7"),
    ("-asked-1", "asked for 1.0"),
    ("-asked-1.2", "asked for 1.2"),
)


def read(path):
    return json.loads(path.read_text()) if path.exists() else None


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def head(*names):
    row(*names)
    row(*("---" if place == 0 else "---:" for place in range(len(names))))


def compared(results, trace):
    """What the two policies came to, and who was refused."""
    report = read(results / f"{trace}.json")
    if report is None:
        return
    fixed, adaptive = report["fixed"], report["adaptive"]
    seconds = report["seconds"]
    print(
        f"\n### {trace}: {report['requests']} requests, {report['accounts']} accounts, {seconds} s; "
        f"{report['tokens_asked'] // seconds} tokens/s asked for; capacity {report['full_capacity']}, "
        f"{report['mean_capacity']} on average, {report['least_capacity']} at worst; "
        f"fixed: {fixed['capacity_share']:.3f} of it\n"
    )
    head("", "fixed", "adaptive", "target")
    per_second = [summary["useful"] // seconds for summary in (fixed, adaptive)]
    row("useful work, tokens a second", *per_second, "")
    row("useful work, against fixed", 1, f"**{report['ratio']:.2f}**", "≥ 1.2")
    row("done too late, tokens a second", *(s["late"] // seconds for s in (fixed, adaptive)), "")
    overload = [f"{summary['overloaded_percent']:.2f} %" for summary in (fixed, adaptive)]
    row("time with utilisation above 1", overload[0], f"**{overload[1]}**", "< 1 %")
    for name, what in (("mean", "on average"), ("p99", "99th percentile"), ("max", "at most")):
        row(f"utilisation, {what}", *(f"{s[name + '_utilisation']:.2f}" for s in (fixed, adaptive)), "")
    small = [summary["refused_of_small"]["all"] for summary in (fixed, adaptive)]
    row("refused of the smallest accounts", f"{small[0]:.2f} %", f"**{small[1]:.2f} %**", "no more than fixed")
    print()
    head("requests refused, %", "all", *CLASSES)
    for group, key in (("all accounts", "refused"), ("the smallest half", "refused_of_small")):
        asked = "by_class" if key == "refused" else "small_by_class"
        for name, summary in (("fixed", fixed), ("adaptive", adaptive)):
            refused = [
                f"{summary[key][one]:.2f}" if summary[asked][one]["asked"]["requests"] else "–" for one in CLASSES
            ]
            row(f"{group}, {name}", f"{summary[key]['all']:.2f}", *refused)


def parted(results):
    """What each part of the adaptive policy brings."""
    print("\n### parts\n")
    head("", "trace", "useful, against fixed", "overload, %", "small refused, %")
    parts = (("-part-load", "load and shares"), ("-part-fair", "and fair"), ("-part-guards", "and adaptive guards"), ("", "and trust"))
    for trace in ("azure", "servegen"):
        whole = read(results / f"{trace}.json")
        for suffix, what in parts:
            report = read(results / f"{trace}{suffix}.json")
            if report is None:
                continue
            adaptive = report["adaptive"]
            ratio = adaptive["useful"] / whole["fixed"]["useful"]
            small = adaptive["refused_of_small"]["all"]
            row(what, trace, f"{ratio:.2f}", f"{adaptive['overloaded_percent']:.2f}", f"{small:.2f}")


def varied(results):
    print("\n### variants\n")
    head("", "trace", "useful, adaptive / fixed", "overload fixed, %", "adaptive, %", "small refused fixed, %", "adaptive, %")
    for suffix, what in VARIANTS:
        for trace in ("azure", "servegen"):
            report = read(results / f"{trace}{suffix}.json")
            if report is None:
                continue
            both = report["fixed"], report["adaptive"]
            row(
                what,
                trace,
                f"{report['ratio']:.2f}",
                *(f"{summary['overloaded_percent']:.2f}" for summary in both),
                *(f"{summary['refused_of_small']['all']:.2f}" for summary in both),
            )


def noisy(results):
    """How far the factor strays once it has settled: after the first five minutes."""
    print("\n### noise\n")
    head("reports off by up to", "factor, mean", "least", "most", "standard deviation", "seconds in which it moved, %", "overload, %")
    for noise in ("0", "0.05", "0.1", "0.2"):
        path = results / f"noise-{noise}.tsv"
        if not path.exists():
            continue
        with path.open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))[300:]
        factors = [float(row["factor"]) for row in rows]
        moved = sum(one != other for one, other in zip(factors, factors[1:]))
        over = sum(float(row["utilisation"]) > 1 for row in rows)
        row(
            f"{float(noise):.0%}",
            f"{statistics.mean(factors):.3f}",
            f"{min(factors):.3f}",
            f"{max(factors):.3f}",
            f"{statistics.pstdev(factors):.3f}",
            f"{100 * moved / len(factors):.1f}",
            f"{100 * over / len(rows):.2f}",
        )


def main():
    results = Path(sys.argv[1])
    for trace in ("azure", "servegen"):
        compared(results, trace)
    parted(results)
    varied(results)
    noisy(results)


main()
