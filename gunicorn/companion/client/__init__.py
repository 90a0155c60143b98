# SPDX-License-Identifier: MIT
"""The implementation of the command ``gunicorn-companion``."""
