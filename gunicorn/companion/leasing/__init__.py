# SPDX-License-Identifier: MIT
"""Leases: which server of a fleet may run a companion, as agreed through a store."""
