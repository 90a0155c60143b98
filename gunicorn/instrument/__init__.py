# SPDX-License-Identifier: MIT
"""Metrics of the server."""
