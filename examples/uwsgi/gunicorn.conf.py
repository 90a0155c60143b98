"""The server behind nginx's ``uwsgi_pass``."""

wsgi_app = "shop:app"
bind = "unix:/tmp/shop.sock"
protocol = "uwsgi"
accesslog = "-"
