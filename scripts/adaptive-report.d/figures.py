"""Draws what `quorate simulate` found, second by second: figures.py RESULTS FOLDER. Needs Matplotlib."""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first

CLASSES = ("critical", "standard", "sheddable", "batch")
COLOURS = ("#4c1d6e", "#3574b0", "#5fb58b", "#e2b33c")
# Seconds that are drawn as one.
SMOOTHED = {"azure": 15, "servegen": 60}
NAMES = {
    "azure": "Azure conversation trace, 58 minutes",
    "servegen": "ServeGen m-small, 25 clients, six hours of an evening",
}
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def read(path):
    with path.open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file, delimiter="\t")]
    return {name: [row[name] for row in rows] for name in rows[0]}


def smooth(values, width, of=lambda part: sum(part) / len(part)):
    return [of(values[at : at + width]) for at in range(0, len(values) - width + 1, width)]


def stack(axes, minutes, seconds, width, values):
    """What each class got, or did not, one on the other."""
    layers = [smooth([value / 1000 for value in values(one)], width) for one in CLASSES]
    axes.stackplot(minutes, layers, colors=COLOURS, labels=CLASSES, linewidth=0)
    capacity = [value / 1000 for value in seconds["capacity"]]
    axes.plot(minutes, smooth(capacity, width), color="black", linewidth=0.8, linestyle="--", label="can be done")


def compared(results, folder, trace):
    both = [(name, results / f"{trace}-{name}.tsv") for name in ("fixed", "adaptive")]
    if not all(path.exists() for _, path in both):
        return
    width = SMOOTHED[trace]
    figure, axes = plt.subplots(4, 2, figsize=(9.2, 8.2), sharex=True, sharey="row")
    for column, (name, path) in enumerate(both):
        seconds = read(path)
        minutes = [(at + 0.5) * width / 60 for at in range(len(smooth(seconds["capacity"], width)))]
        served, refused, used, factor = axes[:, column]
        stack(served, minutes, seconds, width, lambda one: seconds[f"admitted_{one}"])
        stack(
            refused,
            minutes,
            seconds,
            width,
            lambda one: [a - b for a, b in zip(seconds[f"asked_{one}"], seconds[f"admitted_{one}"])],
        )
        used.fill_between(
            minutes,
            smooth(seconds["utilisation"], width, min),
            smooth(seconds["utilisation"], width, max),
            color="#b8c4d0",
            linewidth=0,
            label="least and most in it",
        )
        used.plot(minutes, smooth(seconds["utilisation"], width), color="#1f3b57", linewidth=0.9, label="mean")
        used.axhline(1, color="#b03030", linewidth=0.8)
        used.set_ylim(0, 1.6)
        for one, colour in zip(CLASSES, COLOURS):
            factor.plot(minutes, smooth(seconds[f"factor_{one}"], width), color=colour, linewidth=0.8, label=one)
        factor.plot(minutes, smooth(seconds["factor"], width), color="black", linewidth=1.2, label="all of the capacity")
        served.set_title({"fixed": "fixed limits, as large as is safe", "adaptive": "limits that move"}[name])
        factor.set_xlabel("minutes")
    for place, label in enumerate(("let through,\nthousand tokens/s", "refused,\nthousand tokens/s", "utilisation", "load factor")):
        axes[place, 0].set_ylabel(label)
    for place in (0, 1):
        axes[place, 1].set_ylim(0, 1.3 * axes[place, 1].dataLim.ymax)
    axes[0, 1].legend(ncols=5, fontsize=6.5, loc="upper right", handlelength=1)
    axes[2, 1].legend(ncols=2, fontsize=6.5, loc="upper right")
    axes[3, 1].set_ylim(0, 1.3)
    axes[3, 1].legend(ncols=5, fontsize=6.5, loc="upper right", handlelength=1)
    figure.suptitle(f"{NAMES[trace]}; each point is {width} seconds", fontsize=9)
    save(figure, folder / f"adaptive-{trace}.png")


def noisy(results, folder):
    noises = [noise for noise in ("0", "0.05", "0.1", "0.2") if (results / f"noise-{noise}.tsv").exists()]
    if not noises:
        return
    figure, axes = plt.subplots(2, len(noises), figsize=(9.2, 3.6), sharex=True, sharey="row", squeeze=False)
    for column, noise in enumerate(noises):
        seconds = read(results / f"noise-{noise}.tsv")
        minutes = [at / 60 for at in range(len(seconds["factor"]))]
        axes[0, column].plot(minutes, seconds["factor"], color="black", linewidth=0.8)
        axes[1, column].plot(minutes, seconds["utilisation"], color="#1f3b57", linewidth=0.6)
        axes[1, column].axhline(1, color="#b03030", linewidth=0.8)
        axes[0, column].set_title(f"reports off by up to {float(noise):.0%}")
        axes[1, column].set_xlabel("minutes")
    axes[0, 0].set_ylabel("load factor")
    axes[0, 0].set_ylim(0, 1.05)
    axes[1, 0].set_ylabel("utilisation")
    axes[1, 0].set_ylim(0, 1.4)
    save(figure, folder / "adaptive-noise.png")


def save(figure, path):
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
    print(path)


def main():
    results, folder = Path(sys.argv[1]), Path(sys.argv[2])
    plt.rcParams.update(STYLE)
    for trace in ("azure", "servegen"):
        compared(results, folder, trace)
    noisy(results, folder)


main()
