# %% [markdown]
# # Prices of options
# An option's price is the discounted mean of its payoff over many random paths of a stock's price (a geometric Brownian
# motion with a year of 260 days). The payoff of a European option depends on the last price, that of an Asian one on the mean of all prices.
# Every pair of a strike and a volatility is one task for a LoadBalancedView.

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
parser.add_argument("--paths", type=int, default=10_000)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("plots"))
options, _ = parser.parse_known_args()
options.out.mkdir(parents=True, exist_ok=True)

PRICE, RATE, DAYS = 100.0, 0.05, 260
strikes = np.linspace(90.0, 110.0, 15)
volatilities = np.linspace(0.1, 0.4, 15)


# %%
def price_options(strike, volatility, price, rate, days, paths):
    """Prices of the European call and put and of the Asian call and put."""
    import numpy

    # The same random numbers for every task: the prices are a smooth surface.
    noise = numpy.random.default_rng(2024).standard_normal((paths, days))
    day = 1.0 / days
    growth = numpy.cumsum((rate - volatility**2 / 2) * day + volatility * day**0.5 * noise, axis=1)
    prices = price * numpy.exp(growth)
    last, mean = prices[:, -1], prices.mean(axis=1)
    pays = [last - strike, strike - last, mean - strike, strike - mean]
    return tuple(float(numpy.exp(-rate) * numpy.maximum(pay, 0).mean()) for pay in pays)


# %%
client = ipp.Client()
view = client.load_balanced_view()
pairs = [(strike, volatility) for strike in strikes for volatility in volatilities]
fixed = (PRICE, RATE, DAYS, options.paths)
tasks = [view.apply_async(price_options, strike, volatility, *fixed) for strike, volatility in pairs]
view.wait(tasks)
prices = np.array([task.get() for task in tasks]).reshape(len(strikes), len(volatilities), 4)

# %%
figure, panels = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
names = ["European call", "European put", "Asian call", "Asian put"]
for axes, name, surface in zip(panels.flat, names, np.moveaxis(prices, 2, 0)):
    picture = axes.contourf(volatilities, strikes, surface, levels=15)
    axes.set_title(name)
    axes.set_xlabel("volatility")
    axes.set_ylabel("strike")
    figure.colorbar(picture, ax=axes)
figure.savefig(options.out / "option_prices.png")

# %%
engines = sorted({task.engine_id for task in tasks})
print(json.dumps({"strikes": strikes.tolist(), "volatilities": volatilities.tolist(), "prices": prices.tolist(), "engines": engines}))
