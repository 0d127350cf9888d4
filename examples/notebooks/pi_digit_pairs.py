# %% [markdown]
# # Pairs of digits of pi
# How often does each of 00 to 99 occur in the digits of pi? Each call counts one file; the counts are added up here.

# %%
import argparse
import json
import pathlib
import subprocess
import sys

import ipyparallel as ipp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--digits", type=int, default=1_000_000)
parser.add_argument("--files", type=int, default=15)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("plots"))
options, _ = parser.parse_known_args()
options.out.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The digits
# A program in this directory generates them, with a list of its files.

# %%
make_digits = pathlib.Path(__file__).resolve().parents[1] / "pi" / "make_digits.py"
folder = options.out.resolve() / "pi-digits"
command = [sys.executable, str(make_digits), "--digits", str(options.digits), "--files", str(options.files), "--out", str(folder)]
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
files = (folder / "files.txt").read_text().split()

# %% [markdown]
# ## The count

# %%
client = ipp.Client()
view = client[:]


def count_pairs(path):
    """How often each pair stands in the digits of one file, as 100 numbers."""
    import numpy

    with open(path, "rb") as file:
        digits = numpy.frombuffer(file.read().strip(), dtype="uint8").astype(int) - ord("0")
    return numpy.bincount(10 * digits[:-1] + digits[1:], minlength=100)


counts = sum(view.map(count_pairs, files).get())

# %% [markdown]
# ## The picture
# If all pairs are equally frequent, the differences look like noise.

# %%
figure, axes = plt.subplots(figsize=(6, 5))
picture = axes.imshow(counts.reshape(10, 10) / counts.sum() * 100, cmap="viridis")
axes.set_xticks(range(10))
axes.set_yticks(range(10))
axes.set_xlabel("second digit")
axes.set_ylabel("first digit")
figure.colorbar(picture, label="percent of {:,} pairs".format(counts.sum()))
figure.savefig(options.out / "pi_digit_pairs.png")

# %%
order = np.argsort(counts)
expected = counts.sum() / 100
summary = {
    "counts": counts.tolist(),
    "rarest": "{:02}".format(order[0]),
    "most_frequent": "{:02}".format(order[-1]),
    "chi_squared": float(((counts - expected) ** 2 / expected).sum()),
}
print(json.dumps(summary))
