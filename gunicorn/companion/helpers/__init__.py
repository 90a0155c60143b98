# SPDX-License-Identifier: MIT
"""Helper processes of the manager, whatever they do: the log keeper and the prober are two."""
