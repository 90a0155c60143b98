# SPDX-License-Identifier: MIT
"""How the threads of a worker share its connections."""
