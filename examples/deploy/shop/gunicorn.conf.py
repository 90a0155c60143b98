"""A page and a clerk who works through orders; both are replaced by each deploy."""

wsgi_app = "shop:app"
bind = "127.0.0.1:8000"
pidfile = "../../gunicorn.pid"
workers = 2
preload_app = True

companion_workers = [
    # It finishes its order before it ends; the next release's clerk begins when this one is gone.
    {"name": "clerk", "target": "shop:clerk", "stop_timeout": 60},
]
