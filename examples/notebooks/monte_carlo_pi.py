# %% [markdown]
# # Pi from random points
# The fraction of random points in the unit square that lie within the quarter circle is pi / 4. First with a DirectView, which
# calls a function on every engine; then with a function made parallel by a decorator.

# %%
import argparse
import json
import pathlib

import ipyparallel as ipp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--points", type=int, default=1_000_000, help="in each of the shares")
parser.add_argument("--shares", type=int, default=16)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("plots"))
options, _ = parser.parse_known_args()
options.out.mkdir(parents=True, exist_ok=True)

# %%
client = ipp.Client()
view = client[:]
view.block = True
with view.sync_imports(quiet=True):
    import numpy


# %% [markdown]
# ## A DirectView
# Each engine processes its shares, which are identified by their seeds. The result does not depend on the number of engines.


# %%
def points_within(seeds, points):
    """The number of points of each share that lie within the quarter circle."""
    counts = []
    for seed in seeds:
        x, y = numpy.random.default_rng(seed).random((2, points))
        counts.append(int((x * x + y * y <= 1).sum()))
    return counts


view.scatter("seeds", range(options.shares))
counts = view.apply(points_within, ipp.Reference("seeds"), options.points)
direct = [count for engine in counts for count in engine]
pi_direct = 4 * sum(direct) / (options.points * options.shares)

# %% [markdown]
# ## A parallel function
# The decorator splits the list of shares over the engines and concatenates their results.

# %%
view["points"] = options.points


@view.parallel(block=True)
def points_within_shares(seeds):
    counts = []
    for seed in seeds:
        x, y = numpy.random.default_rng(seed).random((2, points))  # noqa: F821 (it was pushed)
        counts.append(int((x * x + y * y <= 1).sum()))
    return counts


parallel = list(points_within_shares(range(options.shares, 2 * options.shares)))
pi_parallel = 4 * sum(parallel) / (options.points * options.shares)

# %%
x, y = np.random.default_rng(0).random((2, 2000))
within = x * x + y * y <= 1
figure, axes = plt.subplots(figsize=(5, 5))
axes.plot(x[within], y[within], ".", x[~within], y[~within], ".", markersize=3)
axes.set_aspect("equal")
axes.set_title("{} of 2000 points: pi is about {}".format(within.sum(), 4 * within.mean()))
figure.savefig(options.out / "pi_points.png")

# %%
everything = np.array(direct + parallel)
estimates = 4 * everything.cumsum() / (options.points * np.arange(1, len(everything) + 1))
figure, axes = plt.subplots()
axes.plot(np.arange(1, len(everything) + 1) * options.points, estimates, "o-")
axes.axhline(np.pi, color="black", linewidth=1)
axes.set_xlabel("points")
axes.set_ylabel("estimate of pi")
figure.savefig(options.out / "pi_convergence.png")

# %%
print(json.dumps({"engines": len(view), "direct": direct, "parallel": parallel, "pi_direct": pi_direct, "pi_parallel": pi_parallel}))
