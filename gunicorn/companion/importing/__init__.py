# SPDX-License-Identifier: MIT
"""``gunicorn-companion import``: translate the configuration of other supervisors.

One module reads each kind of file, `found` holds what they find, `writer` prints it. Only this command loads
them.
"""
