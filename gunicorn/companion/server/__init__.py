# SPDX-License-Identifier: MIT
"""The master's side of the manager, and the paths that both use."""
