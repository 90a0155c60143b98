# SPDX-License-Identifier: MIT
"""What loads the configuration and the application, and starts the server."""
