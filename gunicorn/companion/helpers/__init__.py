# SPDX-License-Identifier: MIT
"""Helper processes of the manager, whatever they do: log keeper, prober, lease keeper and lease guard."""
