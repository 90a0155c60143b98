# SPDX-License-Identifier: MIT
"""Small tools over the operating system that know nothing of a web server."""
