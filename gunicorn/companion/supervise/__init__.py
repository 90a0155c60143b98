# SPDX-License-Identifier: MIT
"""The manager's work on companions."""
