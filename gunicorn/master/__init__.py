# SPDX-License-Identifier: MIT
"""What an Arbiter is made of."""
