# SPDX-License-Identifier: MIT
"""Outputs and formats of the logs."""
