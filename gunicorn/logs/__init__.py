# SPDX-License-Identifier: MIT
"""Where logs go, and what their lines say."""
