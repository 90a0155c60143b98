# SPDX-License-Identifier: MIT
"""Load the configuration and the application, and start the server."""
