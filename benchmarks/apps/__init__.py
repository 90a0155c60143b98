# SPDX-License-Identifier: MIT
"""What the measured servers run: applications, and the bare loops that serve as yardsticks."""
