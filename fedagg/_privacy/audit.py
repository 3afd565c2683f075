"""An audit: canaries show that epsilon is no smaller than this."""

from typing import NamedTuple

import jax

from fedagg._aggregator import Aggregator
from fedagg._mechanism import Mechanism, RenyiCurve
from fedagg._privacy import attack, canaries
from fedagg._privacy.accounting import epsilon
from fedagg._privacy.composition import NEIGHBORS, sampler_of, spent
from fedagg._privacy.guarantee import run_of
from fedagg._privacy.samplers import Sampler
from fedagg._privacy.tradeoff import (
    any_epsilon,
    contradicts,
    gaussian_distance,
    gaussian_epsilon,
)
from fedagg._trees import checks
from fedagg._types import PyTree

_SCOUTS = 512  # trials by which a canary is chosen, at most


class Audit(NamedTuple):
    """What `audit` found. Prints as a sentence."""

    epsilon: float  # at least, if what is released is noised as by Gaussian noise
    epsilon_of_any: float  # at least, whatever the noise
    delta: float
    confidence: float
    claimed: float | None  # epsilon at this delta, None without a claim
    is_contradicted: bool  # whether the claim is, at this or any other delta
    neighbors: str
    rounds: int
    trials: int
    canary: str  # what the canary is in

    def __str__(self) -> str:
        claim = "nothing is claimed"
        if self.claimed is not None:
            verdict = "CONTRADICTED" if self.is_contradicted else "not contradicted"
            claim = f"claimed {self.claimed:.2f}, {verdict}"
        return (
            f"epsilon at least {self.epsilon:.2f} ({self.epsilon_of_any:.2f} with any "
            f"noise), confidence {self.confidence:g}, delta {self.delta:g}, "
            f"{self.neighbors}: {self.trials} trials of {self.rounds} rounds with a "
            f"canary in {self.canary}; {claim}"
        )


def audit(
    aggregator: Aggregator,
    template: PyTree,
    rounds: int,
    delta: float,
    *,
    neighbors: str,
    key: jax.Array,
    participation: float | Sampler = 1.0,
    others: PyTree = None,
    norm: float = 1e3,
    trials: int = 4096,
    confidence: float = 0.95,
    claim: float | RenyiCurve | Mechanism | None = None,
) -> Audit:
    """A lower bound on epsilon, by running the rounds and guessing who was there.

    A trial is a run of `rounds` rounds with a key of its own. In half of the trials a
    client whose value is known, the canary, takes part in each round that
    `participation` draws it for; in the other half it is its neighbor. Some trials show
    where there is the least noise, over entries and over rounds, and which canary is
    told best; others teach an attack that guesses from the released values and metrics;
    the rest, which nothing was chosen by, count its errors. What is released is all
    that is looked at: nothing is read off the code.

    | bound | holds |
    | --- | --- |
    | `epsilon_of_any` | whatever is run, in `confidence` of all audits |
    | `is_contradicted` | likewise: no private run as claimed makes so few errors |
    | `epsilon` | likewise, if errors trade off as those of Gaussian noise do |

    `epsilon` goes from the errors made, a few per cent, to a `delta` that no number of
    trials sees. Noise with another law (bounded losses, as Laplace's) can have less
    there. The claim is asked at the errors made, and needs no such step.

    With `trials` and two errors in a hundred, a Gaussian's distance is known to a tenth
    or so; no attack shows more than a distance of seven, however little noise there is:
    audit fewer rounds of what has less. What is not seen: a leak to fewer canaries than
    tried, to other norms, or at a chance below one in `trials`; weak random generators;
    what clients' work reports. Of clients who are sampled, errors do not trade off as
    those of Gaussian noise, so that of `epsilon` little is known. To audit a training,
    let its client work return its row.

    Nothing is kept of a trial but a few numbers a round; trials run side by side, as
    many as take a few megabytes. Clients who noise themselves, as by `skellam_noise`,
    need `others`, up to the cohort that noise is calibrated for.

    Args:
        aggregator: what `aggregator`, `combining` or a recipe made, or any such pair
            whose `next` can be traced, and whose value is like the template.
        template: one client's value, as arrays; of a training, the model.
        rounds: how many rounds are released, as in `guarantee`.
        delta: of the guarantee, in (0, 1).
        neighbors: what the canary is told from: "add_or_remove", its absence;
            "zero_out", a value of zero, which a learnt clip counts, as nothing is not:
            further than that relation; "replace_one", the opposite value.
        key: what all keys are made from. Another key is another audit.
        participation: as in `guarantee`: a chance or a sampler, which draws the canary
            from as many as its rate says. Who is drawn is not told.
        others: values of clients who are there in each round, `[n, ...]` on every leaf.
            None stands for nobody.
        norm: of the canary's value, well above any clip. Positive.
        trials: with the canary and without it, each: 256 or more. As many again are for
            learning.
        confidence: the chance that a bound holds, in (0, 1).
        claim: what is claimed, as `epsilon` takes it: a noise multiplier, a curve or a
            `Mechanism`. None stands for what `guarantee` finds, or for no claim where
            it refuses, and where `dp-accounting` is not there.

    Raises:
        ValueError: if an argument is out of range; and as `aggregator.next` does.
        TypeError: for a leaf that is not of a float dtype.

    Reference: Nasr et al., "Tight Auditing of Differentially Private Machine Learning",
        2023, section 4; Andrew et al., "One-shot Empirical Privacy Estimation for
        Federated Learning", 2023, section 3; Steinke, Nasr and Jagielski, "Privacy
        Auditing with One (1) Training Run", 2023, section 1.
    """
    checks.check_whole(1, rounds=rounds)
    checks.check_whole(256, trials=trials)
    checks.check_within("(0, 1)", delta=delta, confidence=confidence)
    checks.check_choice(NEIGHBORS, neighbors=neighbors)
    checks.check_positive(norm=norm)
    checks.check_floating(template, "template")
    key = checks.check_key(key, "audit", "trials")
    noise_key, canary_key, scout_key, learn_key, count_key = jax.random.split(key, 5)
    # Two bounds hold together.
    level = (1.0 - confidence) / 2.0
    sampler = sampler_of(participation)
    subject = canaries.Subject(aggregator, template, others, rounds, neighbors, sampler)
    by_chance = subject.chance, subject.otherwise
    scouts = min(trials, _SCOUTS)

    noise = canaries.noise_of(subject, scouts, noise_key)
    tried = canaries.canaries(subject, noise, norm, canary_key)
    scouted = canaries.readings(subject, [*tried.values()], scouts, scout_key)
    choices = [
        (attack.promise(read, used, level, *by_chance), name, used)
        for name, read in zip(tried, scouted, strict=True)
        for used in (attack.VALUES, attack.ALL)
    ]
    _, name, used = max(choices, key=lambda choice: choice[0])

    def read(key: jax.Array):
        return canaries.readings(subject, [tried[name]], trials, key)[0]

    guesses = attack.learnt(read(learn_key), used, *by_chance)
    accused, missed = guesses.errors(read(count_key), level)

    claimed = _claim_of(subject, claim)
    try:
        least = None if claimed is None else claimed(delta)
    except ImportError:
        claimed = least = None
    is_contradicted = claimed is not None and contradicts(
        claimed, accused, missed, delta
    )
    return Audit(
        gaussian_epsilon(float(gaussian_distance(accused, missed)), delta),
        any_epsilon(accused, missed, delta),
        delta,
        confidence,
        least,
        is_contradicted,
        neighbors,
        rounds,
        trials,
        name,
    )


def _claim_of(subject: canaries.Subject, claim: float | RenyiCurve | Mechanism | None):
    """The claimed epsilon as a function of delta, or None."""
    rounds, neighbors, sampler = subject.rounds, subject.neighbors, subject.sampler
    # Cohorts of a fixed size are accounted by Rényi divergences.
    is_fixed = sampler.size is not None and sampler.rate < 1.0
    accountant = "rdp" if is_fixed else "pld"
    if claim is not None:
        return lambda delta: epsilon(
            claim,
            rounds,
            delta,
            neighbors=neighbors,
            participation=sampler,
            accountant=accountant,
        )
    try:
        run = run_of(
            subject.aggregator,
            subject.template,
            rounds,
            neighbors,
            sampler,
            accountant,
        )
    except (TypeError, ValueError):
        return None  # guarantee refuses to claim anything
    return lambda delta: spent(run, delta, accountant)
