# SPDX-License-Identifier: MIT
"""What the command ``gunicorn-companion`` does."""
