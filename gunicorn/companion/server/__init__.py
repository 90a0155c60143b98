# SPDX-License-Identifier: MIT
"""The master's side of the manager, and where both find each other."""
