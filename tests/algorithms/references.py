"""Published algorithms in float64 NumPy, each step as its paper writes it.

Clients hold examples `(h, t)`, `[m, d]` both, with the loss `mean(h (x - t)^2 / 2)`,
and step along gradients of batches in order. Nothing is imported of ours.
"""

import numpy as np


class Quadratic:
    """A client with its batches."""

    def __init__(self, h, t, batch, epochs):
        self.h, self.t = np.asarray(h, np.float64), np.asarray(t, np.float64)
        starts = range(0, len(self.h), batch or max(len(self.h), 1))
        self.batches = [slice(s, s + (batch or len(self.h))) for s in starts] * epochs

    def loss(self, x):
        return float(np.mean(np.sum(self.h * (x - self.t) ** 2 / 2, axis=1)))

    def gradient(self, x, batch=slice(None)):
        return np.mean(self.h[batch] * (x - self.t[batch]), axis=0)

    @property
    def steps(self):
        return len(self.batches)


def descent(client, x, rate, extra=lambda x: 0.0, momentum=0.0):
    """SGD over the client's batches, from x, with more added to each gradient."""
    x, velocity = x.copy(), np.zeros_like(x)
    for batch in client.batches:
        velocity = momentum * velocity + client.gradient(x, batch) + extra(x)
        x = x - rate * velocity
    return x


def scaffold(clients, x, cohorts, rate, server_rate=1.0):
    """Karimireddy et al. 2020, algorithm 1, option II."""
    n, c = len(clients), np.zeros_like(x)
    ci = [np.zeros_like(x) for _ in clients]
    for cohort in cohorts:
        moved, changed = np.zeros_like(x), np.zeros_like(x)
        for i in cohort:
            y = descent(clients[i], x, rate, lambda y, i=i, c=c: c - ci[i])
            plus = ci[i] - c + (x - y) / (clients[i].steps * rate)
            moved += (y - x) / len(cohort)
            changed += plus - ci[i]
            ci[i] = plus
        x = x + server_rate * moved
        c = c + changed / n
    return x, c, np.stack(ci)


def fednova(clients, x, cohorts, rate, momentum, proximal, sizes):
    """Wang et al. 2020: a_i of section 4.1 by its recursion, the step of section 5."""
    for cohort in cohorts:
        p = np.array([sizes[i] for i in cohort], float)
        p /= p.sum()
        effective, direction = 0.0, np.zeros_like(x)
        for share, i in zip(p, cohort, strict=True):
            y = descent(
                clients[i], x, rate, lambda y, x=x: proximal * (y - x), momentum
            )
            # Each gradient's weight in the change: a step adds one to its own, and the
            # proximal term and the momentum act on those before.
            tau = clients[i].steps
            a, velocity = np.zeros(tau), np.zeros(tau)
            for k in range(tau):
                velocity = momentum * velocity - proximal * rate * a
                velocity[k] += 1.0
                a = a + velocity
            norm = np.sum(np.abs(a))
            direction += share * (y - x) / norm
            effective += share * norm
        x = x + effective * direction
    return x


def fedex_lora(clients, weight, a, b, cohorts, rate, sizes, scale):
    """Singhal et al. 2024, section 4: the residual of the products goes into W."""
    for cohort in cohorts:
        p = np.array([sizes[i] for i in cohort], float)
        p /= p.sum()
        factors = []
        for i in cohort:
            ai, bi = a.copy(), b.copy()
            for batch in clients[i].batches:
                x = (weight + scale * ai @ bi)[:, 0]
                g = scale * clients[i].gradient(x, batch)[:, None]
                ai, bi = ai - rate * g @ bi.T, bi - rate * ai.T @ g
            factors.append((ai, bi))
        products = np.einsum("i,ijk->jk", p, np.stack([x @ y for x, y in factors]))
        a = np.einsum("i,ijk->jk", p, np.stack([x for x, _ in factors]))
        b = np.einsum("i,ijk->jk", p, np.stack([y for _, y in factors]))
        weight = weight + scale * (products - a @ b)
    return weight, a, b


def feddyn(clients, x, cohorts, rate, alpha):
    """Acar et al. 2021, algorithm 1, with the client's minimum by the same steps."""
    m, h = len(clients), np.zeros_like(x)
    own = [np.zeros_like(x) for _ in clients]
    for cohort in cohorts:
        ends = {}
        for i in cohort:
            ends[i] = descent(
                clients[i], x, rate, lambda y, i=i, x=x: -own[i] + alpha * (y - x)
            )
            own[i] = own[i] - alpha * (ends[i] - x)
        h = h - alpha / m * sum(end - x for end in ends.values())
        x = sum(ends.values()) / len(cohort) - h / alpha
    return x, h, np.stack(own)


def mime_lite_momentum(clients, x, cohorts, rate, beta):
    """Karimireddy et al. 2021, algorithm 1: U and V of momentum, MimeLite."""
    m = np.zeros_like(x)
    for cohort in cohorts:
        moved, mean = np.zeros_like(x), np.zeros_like(x)
        for i in cohort:
            y = x.copy()
            for batch in clients[i].batches:
                y = y - rate * ((1 - beta) * clients[i].gradient(y, batch) + beta * m)
            moved += (y - x) / len(cohort)
            mean += clients[i].gradient(x) / len(cohort)
        m = (1 - beta) * mean + beta * m
        x = x + moved
    return x, m


def q_fedavg(clients, x, cohorts, rate, q, lipschitz):
    """Li et al. 2020, algorithm 2."""
    for cohort in cohorts:
        top, bottom = np.zeros_like(x), 0.0
        for i in cohort:
            f = clients[i].loss(x)
            delta_w = lipschitz * (x - descent(clients[i], x, rate))
            top += f**q * delta_w
            bottom += q * f ** (q - 1) * np.sum(delta_w**2) + lipschitz * f**q
        x = x - top / bottom
    return x


def agnostic(clients, x, cohorts, rate, mixture_rate):
    """Each client a group: weights of the mixture, then an exponentiated step of it."""
    mixture = np.full(len(clients), 1.0 / len(clients))
    for cohort in cohorts:
        cohort = np.asarray(cohort)
        ends = np.stack([descent(clients[i], x, rate) for i in cohort])
        losses = np.array([clients[i].loss(x) for i in cohort])
        weights = mixture[cohort]
        there = weights.sum()
        x = x + weights @ (ends - x) / there
        moved = weights * np.exp(mixture_rate * losses)
        mixture[cohort] = moved / moved.sum() * there
    return x, mixture


def ifca(clients, x, cohorts, rate):
    """Ghosh et al. 2020, algorithm 1, model averaging; x is [k, d]."""
    for cohort in cohorts:
        chosen = [np.argmin([clients[i].loss(m) for m in x]) for i in cohort]
        pairs = list(zip(cohort, chosen, strict=True))
        ends = [(descent(clients[i], x[j], rate), j) for i, j in pairs]
        x = np.stack(
            [
                np.mean([end for end, c in ends if c == j], axis=0)
                if j in chosen
                else x[j]
                for j in range(len(x))
            ]
        )
    return x


def ditto(clients, x, cohorts, rate, pull):
    """Li et al. 2021, algorithm 1."""
    own = [x.copy() for _ in clients]
    for cohort in cohorts:
        ends = []
        for i in cohort:
            ends.append(descent(clients[i], x, rate))
            own[i] = descent(clients[i], own[i], rate, lambda v, x=x: pull * (v - x))
        x = np.mean(ends, axis=0)
    return x, np.stack(own)


def apfl(clients, x, cohorts, rate, alpha):
    """Deng et al. 2020, algorithm 1."""
    own = [x.copy() for _ in clients]
    for cohort in cohorts:
        ends = []
        for i in cohort:
            w, v = x.copy(), own[i]
            for batch in clients[i].batches:
                mixture = alpha * v + (1 - alpha) * w
                gradient = clients[i].gradient(w, batch)
                v = v - rate * alpha * clients[i].gradient(mixture, batch)
                w = w - rate * gradient
            own[i] = v
            ends.append(w)
        x = np.mean(ends, axis=0)
    return x, np.stack(own)


def adamw(gradients_at, x, m, v, count, rate, decay, steps, b1=0.9, b2=0.999):
    """AdamW with corrected bias, from moments that a replica kept."""
    for k in range(steps):
        g = gradients_at(x, k)
        count += 1
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        corrected = m / (1 - b1**count), v / (1 - b2**count)
        x = x - rate * (corrected[0] / (np.sqrt(corrected[1]) + 1e-8) + decay * x)
    return x, m, v, count


def diloco(clients, x, cohorts, rate, decay, outer_rate, momentum):
    """Douillard et al. 2023, algorithm 1, with Nesterov's momentum as in PyTorch."""
    kept = [(np.zeros_like(x), np.zeros_like(x), 0) for _ in clients]
    velocity = np.zeros_like(x)
    for cohort in cohorts:
        outer = np.zeros_like(x)
        for i in cohort:
            own, (m, v, count) = clients[i], kept[i]
            end, *now = adamw(
                lambda y, k, own=own: own.gradient(y, own.batches[k]),
                x,
                m,
                v,
                count,
                rate,
                decay,
                own.steps,
            )
            kept[i] = tuple(now)
            outer += (x - end) / len(cohort)
        velocity = momentum * velocity + outer
        x = x - outer_rate * (outer + momentum * velocity)
    return x, np.stack([m for m, _, _ in kept])
