# SPDX-License-Identifier: MIT
"""A page and its files: start it with ``gunicorn`` in this directory."""

wsgi_app = "shop:app"
workers = 2
preload_app = True  # the files are looked for once
accesslog = "-"

static = {"/static": "assets"}  # relative to the directory of the start
static_max_age = 300
