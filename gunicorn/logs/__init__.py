# SPDX-License-Identifier: MIT
"""The outputs and formats of logs."""
