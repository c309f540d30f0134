"""The server's own pages: nothing from elsewhere, in no frame, not stored."""

from importlib.resources import files

from fastapi import Response

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}

SHARED_SCRIPT = "page_script.js"


def own_page(package: str | None, name: str) -> Response:
    """A page of a package, with the script that all pages share in the place of the comment that names it."""
    assert package is not None
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    shared = files(__package__).joinpath(SHARED_SCRIPT).read_text(encoding="utf-8")
    before, after = text.split(f"// {SHARED_SCRIPT}\n")
    return Response(before + shared + after, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)
