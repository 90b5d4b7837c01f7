"""`python -m benchmarks reproduce report FOLDER`: a table beside the paper's numbers, a picture."""

from __future__ import annotations

from pathlib import Path

from .. import plots
from ..datafile import BadFile, write
from ..paper.train import summary
from ..tables import markdown_table
from .finished import groups, read_runs
from .published import Published
from .published import read as read_published
from .robustness import ATTACKS

MARK = "<!-- written by python -m benchmarks reproduce report -->"
NAMED = ("dataset", "network", "method", "seed")
COLUMNS = ("alpha", "layers", "epochs")  # of the table of results
# (key of a result, title, digits)
NUMBERS = (
    ("test_error", "test error %", 2),
    ("test_nll", "test NLL", 3),
    ("test_top5_error", "top-5 error %", 2),
)


def spread(values: list[float], digits: int) -> str:
    """Mean and standard error; one value alone has none."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    mean, error = summary(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def theirs(row: dict | None, key: str, digits: int) -> str:
    """The paper's number, said to be theirs."""
    if row is None or key not in row:
        return ""
    deviation = f" ± {row[f'{key}_sd']:.3f}" if f"{key}_sd" in row else ""
    return f"{row[key]:.{digits}f}{deviation} (paper, Table {row['table']})"


def setting(value: object) -> str:
    if isinstance(value, list):  # layers
        return ", ".join(name or "input" for name in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def label(config: dict, others: list[dict], columns: tuple[str, ...] = ()) -> str:
    """The method, and the settings without a column in which runs of this network differ.

    Methods differ by alpha and layers anyway: these are named only where runs of the same do.
    """
    network = [other for other in others if other["network"] == config["network"]]
    method = [other for other in network if other["method"] == config["method"]]
    words = [config["method"]]
    for key in config:
        if key in NAMED + columns:
            continue
        if any(o.get(key) != config[key] for o in (method if key in COLUMNS else network)):
            words.append(f"{key} {setting(config[key])}")
    return ", ".join(words)


def results(some: list[list[dict]], published: Published) -> str:
    """A line for each group of finished runs of one set."""
    configs = [group[0]["config"] for group in some]
    numbers = [n for n in NUMBERS if all(run[n[0]] is not None for group in some for run in group)]
    body = []
    for group, config in zip(some, configs, strict=True):
        line = [config["network"], label(config, configs, COLUMNS)]
        line += [*(setting(config[key]) for key in COLUMNS), str(len(group))]
        row = published.result(config)
        for key, _, digits in numbers:
            line += [spread([run[key] for run in group], digits), theirs(row, key, digits)]
        body.append(line)
    titles = [name for _, title, _ in numbers for name in (title, f"paper's {title}")]
    return markdown_table(["network", "method", *COLUMNS, "seeds", *titles], body)


def shortened(some: list[list[dict]], published: Published) -> str:
    """Which runs are shorter than the paper's, which their results must not be compared with."""
    short = []
    for group in some:
        config = group[0]["config"]
        row = published.result(config)
        if row and config["epochs"] < row["epochs"]:
            name = f"{config['network']} {config['method']}"
            short.append(f"{name} {config['epochs']} of {row['epochs']}")
    return f"Fewer epochs than the paper's: {'; '.join(short)}." if short else ""


def robustness(some: list[list[dict]], published: Published) -> str:
    """Accuracy after each deformation and attack, of the groups that were tested so."""
    tested = [[run for run in group if run["robustness"]] for group in some]
    tested = [group for group in tested if group]
    if not tested:
        return ""
    configs = [group[0]["config"] for group in tested]
    head, body = ["accuracy %"], []
    for config in configs:
        head += [f"{config['network']} {label(config, configs)}", "paper's"]
    for name in tested[0][0]["robustness"]:
        line = [name]
        for group, config in zip(tested, configs, strict=True):
            found = published.accuracy(config, name)
            line.append(spread([run["robustness"][name] for run in group], 2))
            line.append(f"{found[0]:.2f} (paper, Table {found[1]})" if found else "")
        body.append(line)
    return markdown_table(head, body)


def table(runs: list[dict], published: Published) -> str:
    """Markdown: for each set its results, and its robustness, beside the paper's."""
    finished = [run for run in runs if "test_error" in run]
    source = published.source
    parts = [
        f"Ours: mean ± standard error over seeds. The paper's: {source['title']}, "
        f"{source['version']}, ± standard deviation over five runs."
    ]
    for dataset in sorted({run["config"]["dataset"] for run in finished}):
        some = groups([run for run in finished if run["config"]["dataset"] == dataset])
        parts += [f"## {dataset}", results(some, published), shortened(some, published)]
        parts.append(robustness(some, published))
    if waiting := [run["name"] for run in runs if run not in finished]:
        parts.append(f"Not finished: {', '.join(waiting)}.")
    if any(run["robustness"] for run in finished):
        most = ATTACKS["PGD unbounded, 200 steps"].most
        parts.append(f"The unbounded attack is of {most:,} images at most.")
    parts.append("On the paper's numbers: " + " ".join(published.notes))
    return "\n\n".join(part for part in parts if part)


def plot(runs: list[dict]) -> bytes:
    """PNG: test error over epochs, a panel for each set, a line for each group's mean."""
    sets = sorted({run["config"]["dataset"] for run in runs})
    figure, axes = plots.plt.subplots(len(sets), 1, figsize=(8, 3.5 * len(sets)), squeeze=False)
    for panel, dataset in zip(axes.flat, sets, strict=True):
        some = groups([run for run in runs if run["config"]["dataset"] == dataset])
        configs = [group[0]["config"] for group in some]
        for number, (group, config) in enumerate(zip(some, configs, strict=True)):
            logs = [[row["test_error"] for row in run["log"]] for run in group]
            mean = [sum(errors) / len(errors) for errors in zip(*logs, strict=False)]
            name = f"{config['network']} {label(config, configs)}"
            color = f"C{number}"
            panel.plot(range(1, len(mean) + 1), mean, color=color, label=name)
            for errors in logs:
                panel.plot(range(1, len(errors) + 1), errors, color=color, alpha=0.3, lw=0.7)
        panel.set(title=dataset, xlabel="epoch", ylabel="test error %")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return plots.png(figure)


def main(folder: Path) -> None:
    """Writes table.md and plot.png into the folder of the runs."""
    runs, published = read_runs(folder), read_published()
    text, picture = folder / "table.md", folder / "plot.png"
    ours = text.is_file() and text.read_text(errors="replace").startswith(MARK)
    for path in (text, picture):
        if path.exists() and not ours:
            raise BadFile(f"{path} must be a report of these runs, or absent: move it elsewhere")
    write(text, f"{MARK}\n\n{table(runs, published)}\n")
    write(picture, plot(runs))
    print(f"written: {text}, {picture}")
