# SPDX-License-Identifier: MIT
"""The prober: a process that makes the checks of companions."""
