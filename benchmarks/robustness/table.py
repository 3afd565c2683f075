"""The grid as tables, and as heat maps."""

from pathlib import Path

from benchmarks.report import markdown
from benchmarks.robustness.choosing import Row, gaps, worst


def worst_cases(rows: list[Row]) -> str:
    """What the worst attack leaves to each rule, by fedagg and by who ran it too."""
    least = worst(rows)
    names = list(dict.fromkeys(who for who, *_ in least))
    where = dict.fromkeys((who, *x) for who, _, _, *x in least)
    columns = sorted(where, key=lambda x: (-x[1], x[2], names.index(x[0])))
    header = ["rule", *(f"{who}, {_part(x)} alike, {f} lie" for who, x, f in columns)]
    lines = [
        [
            title(rule, mixer),
            *(_cell(least.get((who, rule, mixer, *x))) for who, *x in columns),
        ]
        for rule, mixer in dict.fromkeys((rule, mixer) for _, rule, mixer, *_ in least)
    ]
    return markdown([header, *lines])


def times(rows: list[Row]) -> str:
    """What a training takes, by fedagg and by who ran it too."""
    took = [row for row in rows if "trainings" in row]
    header = ["", "trainings timed", "s", "s each", "x fedagg", "min for the grid"]
    each = {row["who"]: row["seconds"] / row["trainings"] for row in took}
    lines = [
        [
            row["who"],
            f"{row['trainings']:,}",
            f"{row['seconds']:,.0f}",
            f"{each[row['who']]:.2f}",
            f"{each[row['who']] / each['fedagg']:.1f}",
            f"{each[row['who']] * row['of'] / 60.0:,.1f}",
        ]
        for row in took
    ]
    return markdown([header, *lines])


def agreement(rows: list[Row]) -> str:
    """A sentence on how far worst cases are apart."""
    found = gaps(rows)
    if not found:
        return "Nobody else ran a whole part of the grid."
    within = sum(gap <= 1.0 for gap in found.values())
    return (
        f"Of {len(found)} worst cases that both have, {within} differ by less than a "
        f"deviation from seed to seed, and all by at most {max(found.values()):.1f}."
    )


def title(rule: str, mixer: str) -> str:
    return f"{rule}, {mixer}" if mixer else rule


def draw(rows: list[Row], path: Path) -> None:
    """Heat maps of fedagg's accuracies where most lie: rules by attacks."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row["who"] == "fedagg" and "accuracy" in row]
    most = max(row["liars"] for row in rows)
    found = {
        (title(row["rule"], row["mixer"]), row["attack"], row["similarity"]): row
        for row in rows
        if row["liars"] == most
    }
    rules, attacks, parts = (list(dict.fromkeys(x)) for x in zip(*found, strict=True))
    parts = sorted(parts, reverse=True)
    size = 0.9 * len(attacks) * len(parts) + 3.2, 0.42 * len(rules) + 1.6
    figure, [axes] = plt.subplots(
        *(1, len(parts)),
        figsize=size,
        dpi=100,
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, part in zip(axes, parts, strict=True):
        table = [[found[x, y, part]["accuracy"] for y in attacks] for x in rules]
        image = axis.imshow(table, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        for i, line in enumerate(table):
            for j, accuracy in enumerate(line):
                color = "black" if accuracy > 0.6 else "white"
                axis.text(
                    j, i, f"{accuracy:.2f}", ha="center", va="center", color=color
                )
        axis.set(title=f"{_part(part)} of the data alike")
        axis.set_xticks(range(len(attacks)), attacks, rotation=30, ha="right")
        axis.set_yticks(range(len(rules)), rules)
    figure.colorbar(image, ax=axes, label=f"accuracy, {most} lie")
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _part(similarity: float) -> str:
    return f"{similarity:.0%}".replace("%", " %")


def _cell(row: Row | None) -> str:
    return f"{row['accuracy']:.3f} ± {row['spread']:.3f}" if row else "-"
