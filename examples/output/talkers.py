# SPDX-License-Identifier: MIT
"""What the companions of this example do: write."""

import itertools
import time


def talk() -> None:
    for number in itertools.count():
        print(f"this is line {number}")
        time.sleep(1)


def fail() -> None:
    time.sleep(2)
    prices: dict[str, int] = {}
    print(prices["tea"])


def chatter() -> None:
    for number in itertools.count():
        print(f"{number}: " + "blah " * (number % 20))
        time.sleep(0.002)
