# SPDX-License-Identifier: MIT
"""The monitor: what a server and its companions are doing, for people and for machines."""
