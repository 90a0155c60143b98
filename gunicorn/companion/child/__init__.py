# SPDX-License-Identifier: MIT
"""What runs in a companion itself."""
