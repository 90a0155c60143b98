# SPDX-License-Identifier: MIT
"""Captured output of companions: kept in memory, followed, and written to the server's output or to files."""
