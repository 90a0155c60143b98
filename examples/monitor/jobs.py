# SPDX-License-Identifier: MIT
"""What the companions do."""

import itertools
import time


def count_stock():
    for number in itertools.count(1):
        print(f"{number} teapots in stock", flush=True)
        time.sleep(5)


def send_mail():
    while True:
        print("no mail to send", flush=True)
        time.sleep(10)


def import_prices():
    time.sleep(20)
    raise KeyError("price")
