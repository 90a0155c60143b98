# SPDX-License-Identifier: MIT
"""What the manager does with companions."""
