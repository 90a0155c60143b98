# SPDX-License-Identifier: MIT
"""A JSON view of Django, with the middleware that a new project has and that needs no database."""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY="of a benchmark",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
)
django.setup()


def book(request: Any, number: int) -> JsonResponse:
    return JsonResponse(
        {"number": number, "title": "A Book", "page": request.GET.get("page"), "tags": ["a", "b", "c"]}
    )


urlpatterns = [path("books/<int:number>", book)]
app = get_wsgi_application()
