# SPDX-License-Identifier: MIT
"""Share a worker's connections among its threads."""
