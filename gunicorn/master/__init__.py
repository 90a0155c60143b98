# SPDX-License-Identifier: MIT
"""The parts of an Arbiter."""
