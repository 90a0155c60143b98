# SPDX-License-Identifier: MIT
"""Figures about the server, for those who watch it."""
