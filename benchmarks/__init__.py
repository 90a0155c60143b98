# SPDX-License-Identifier: MIT
"""Measurements. Each prints its own ratio against a peer that is measured in the same run."""
