"""FedBuff in float64, from the paper, and the clients that it is compared on."""

import heapq

import jax.numpy as jnp
import numpy as np

N, K = 9, 3
DRAW = np.random.default_rng(5)
CENTRES = DRAW.normal(size=(N, 3)).astype(np.float32)
CURVATURES = DRAW.uniform(0.2, 1.0, N).astype(np.float32)
WEIGHTS = DRAW.integers(1, 9, N).astype(np.float32)
SECONDS = DRAW.pareto(1.5, N).astype(np.float32) + 0.1
DATA = {"centre": CENTRES, "curvature": CURVATURES}


def work(variables, row, key):
    """Two steps down a parabola of the client's own."""
    del key
    w = variables["w"]
    for _ in range(2):
        w = w - 0.5 * row["curvature"] * (w - row["centre"])
    return {"w": w - variables["w"]}, {"at": jnp.sum(variables["w"])}


def model():
    return {"w": jnp.zeros(3)}


def fedbuff(steps, max_staleness=10, weights=WEIGHTS, seconds=SECONDS):
    """The model and the seconds of each step, in float64, by a queue of events.

    All clients are away. Who is in the buffer goes out again when it is emptied.
    """
    w, momentum, number, buffered, began = np.zeros(3), np.zeros(3), 0, [], 0.0
    queue = [(float(seconds[i]), i, 0, w) for i in range(N)]
    heapq.heapify(queue)
    found, refused = [], 0
    while number < steps:
        now, i, version, given = heapq.heappop(queue)
        if number - version > max_staleness:
            refused += 1
            heapq.heappush(queue, (now + float(seconds[i]), i, number, w))
            continue
        local = given.copy()
        for _ in range(2):
            local -= 0.5 * float(CURVATURES[i]) * (local - CENTRES[i].astype(float))
        late = number - version
        buffered.append((i, (local - given) / np.sqrt(1.0 + late), late))
        if len(buffered) == K:
            total = sum(float(weights[j]) * x for j, x, _ in buffered)
            momentum = 0.5 * momentum + total / sum(weights[j] for j, _, _ in buffered)
            w, number = w + momentum, number + 1
            stale = np.mean([x for _, _, x in buffered])
            found.append((w, now - began, stale, refused))
            for j, _, _ in buffered:
                heapq.heappush(queue, (now + float(seconds[j]), j, number, w))
            buffered, began, refused = [], now, 0
    return found
