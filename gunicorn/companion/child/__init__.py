# SPDX-License-Identifier: MIT
"""The code that runs in a companion itself."""
